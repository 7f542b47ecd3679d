"""The tokenizer: numbers and tags in whole tokens, every text back as it was, masks from lengths, templates caged."""
import itertools
import json
import random
import re

import pytest
import tokenizers

from r1 import world
from r1.tokenizer import CHAT, END, SPECIAL, TAGS, Tokenizer
from r1.types import UserError

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 19-4?"},
                {"role": "assistant", "content": "<think>19-4=15</think><answer>15</answer>"},
                {"role": "user", "content": "再加3呢？"},
                {"role": "assistant", "content": "<think>15+3=18</think>\n<answer>18</answer>"}]
LETTERS = "abz XYZ 0123456789 .,;!?()+-*/=<>|{}%$\\\"'\n\t  的一是加减\u00e9\u00df\u0416\u05d0\u0661\u2028\U0001f600\u200d\0\ufeff\u0301"


def random_text(rng: random.Random) -> str:
    """Text of anything: ASCII, Han, marks, controls, emoji, any code point that is no surrogate, markers in between."""
    make = [lambda: rng.choice(LETTERS), lambda: rng.choice(SPECIAL), lambda: str(rng.randrange(10**6)),
            lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])), lambda: rng.choice(SPECIAL)[:-1]]
    return "".join(rng.choice(make)() for _ in range(rng.randrange(40)))


def with_config(tokenizer: Tokenizer, **changes) -> Tokenizer:
    return Tokenizer(tokenizer.core, {**tokenizer.config, **changes})


# ---- training ----------------------------------------------------------------------------------

def test_training_merges_by_hand():
    """8 markers, 256 bytes and the numbers 10 to 99 are 354 tokens; the next one is the corpus's most frequent pair."""
    base, one = (Tokenizer.train(["xq;xq;xz"], size) for size in (354, 355))
    assert (base.vocab_size, one.vocab_size) == (354, 355)
    assert [len(base.encode(t)) for t in ("xq", "xz")] == [2, 2]
    assert [len(one.encode(t)) for t in ("xq", "xz", "xqxz")] == [1, 2, 3]


def test_training_is_deterministic(tmp_path):
    texts = list(itertools.islice(world.corpus(3, 0.1, 0.4, 0.1), 300))
    for name in "ab":
        Tokenizer.train(iter(texts), 512).save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_markers_are_single_ids_and_come_first(tokenizer):
    assert {*TAGS, *CHAT, END} == {"<think>", "</think>", "<answer>", "</answer>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}
    assert [tokenizer.encode(token) for token in SPECIAL] == [[i] for i in range(8)]
    assert tokenizer.eos_id == tokenizer.encode("<|end|>")[0] and tokenizer.vocab_size == 768
    for token in SPECIAL:                  # whatever stands around it
        i = tokenizer.encode(token)[0]
        for before, after in (("", "x"), ("x", ""), (" ", " "), ("9", "9"), ("的", "的"), (token, token), ("<", ">")):
            ids = tokenizer.encode(before + token + after)
            assert ids == tokenizer.encode(before) + [i] + tokenizer.encode(after)
        assert i not in tokenizer.encode(token[:-1] + " >") and i not in tokenizer.encode(token.upper())


def test_none_is_added(tokenizer):
    assert tokenizer.encode("") == [] and tokenizer.encode_batch(["", "7"]) == [[], tokenizer.encode("7")]
    assert not set(tokenizer.encode("What is 1+1? 一加一")) & set(range(8))


# ---- numbers and words -------------------------------------------------------------------------

def test_numbers_below_100_are_one_token_even_where_the_corpus_has_none():
    bare = Tokenizer.train(["no digits in here at all"] * 50, 400)
    ids = [bare.encode(str(n)) for n in range(100)]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == 100


@pytest.mark.parametrize("number, pieces", [
    ("7", ["7"]), ("42", ["42"]), ("123", ["12", "3"]), ("1234", ["12", "34"]), ("98765", ["98", "76", "5"]), ("-15", ["-", "15"]),
    ("3.14", ["3", ".", "14"]), ("10=4+6", ["10", "=", "4", "+", "6"])])
def test_long_numbers_come_in_pairs_from_the_left(tokenizer, number, pieces):
    """The same tokens wherever the number stands: no digit ever joins what is before or behind it."""
    want = [tokenizer.encode(p)[0] for p in pieces]
    assert tokenizer.encode(number) == want
    for before, after in (("is", "."), ("is ", " apples"), ("有", "个"), ("(", ")"), ("\n", "\n"), ("<answer>", "</answer>"), ("x", "y")):
        ids = tokenizer.encode(before + number + after)
        assert ids == tokenizer.encode(before) + want + tokenizer.encode(after)


def test_no_token_crosses_a_piece(tokenizer):
    """Pieces as the module describes them, cut here by another regex engine: words with their space, digit pairs, Han runs."""
    cut = re.compile("|".join(map(re.escape, SPECIAL)) + r"| ?[A-Za-z]+|[0-9]{1,2}|[\u4e00-\u9fff]+|\s| ?[^\sA-Za-z0-9\u4e00-\u9fff]")
    rng = random.Random(1)
    texts = ["".join(rng.choice("abc XY  0123456789.,;+-=<>的一是加\n\t") for _ in range(60)) for _ in range(200)]
    for text in texts + list(itertools.islice(world.corpus(5, 0.5, 0.5, 0.1), 200)):
        pieces = cut.findall(text)
        assert "".join(pieces) == text
        assert tokenizer.encode(text) == [i for p in pieces for i in tokenizer.encode(p)], text


# ---- there and back ----------------------------------------------------------------------------

def test_every_text_comes_back(tokenizer):
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(1500)] + ["", " ", "\r\n \n", "\u200b", "a\u0301", "ﬁ½", "\0\0", "".join(map(chr, range(0x300)))]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


def test_every_byte_is_a_token_and_any_ids_decode(tokenizer):
    """Each of the 256 bytes is in reach, so a model can write any UTF-8; what is none becomes U+FFFD, as in Python."""
    byte = {}
    for code in range(0x80):
        byte[code], = tokenizer.encode(chr(code))
    for text in (chr(c) for c in [*range(0x80, 0x800), *range(0x800, 0x10000, 64), *range(0x10000, 0x110000, 4096)] if not 0xD800 <= c < 0xE000):
        ids = tokenizer.encode(text)
        if len(ids) == len(text.encode()):
            byte.update(zip(text.encode(), ids, strict=True))
    valid = set(range(256)) - {0xC0, 0xC1, *range(0xF5, 256)}       # the others stand in no UTF-8 text
    assert set(byte) == valid and len(set(byte.values())) == len(valid)
    rng = random.Random(2)
    for _ in range(300):
        raw = bytes(rng.choice(sorted(valid)) for _ in range(rng.randrange(12)))
        assert tokenizer.decode([byte[b] for b in raw]) == raw.decode("utf-8", errors="replace")
    for _ in range(100):
        assert isinstance(tokenizer.decode([rng.randrange(tokenizer.vocab_size) for _ in range(30)]), str)


def test_decoding_keeps_the_markers(tokenizer):
    assert tokenizer.decode([tokenizer.eos_id]) == END
    assert tokenizer.decode(tokenizer.encode("<think>a</think>")) == "<think>a</think>"


# ---- conversations: ids and mask ---------------------------------------------------------------

def test_render_by_hand(tokenizer):
    """The template written out; only the last completion and the end after it are supervised."""
    ids, mask = tokenizer.render(CONVERSATION)
    prompt = ("<|system|>Be brief.<|user|>What is 19-4?<|assistant|><think>19-4=15</think><answer>15</answer><|end|>"
              "<|user|>再加3呢？<|assistant|>")
    completion = "<think>15+3=18</think>\n<answer>18</answer><|end|>"
    assert tokenizer.render_prompt(CONVERSATION[:-1]) == prompt
    assert ids == tokenizer.encode(prompt) + tokenizer.encode(completion)
    assert mask == [0] * len(tokenizer.encode(prompt)) + [1] * len(tokenizer.encode(completion))
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == completion
    assert ids.count(tokenizer.eos_id) == 2 and mask[ids.index(tokenizer.eos_id)] == 0      # the first turn's end is prompt


def test_masks_come_from_lengths_never_from_values(tokenizer):
    """Whatever either side holds, the seam is where the prompt ends, and one end is supervised behind the completion."""
    rng = random.Random(3)
    for _ in range(300):
        prompt, completion = random_text(rng), random_text(rng)
        head = tokenizer.encode(tokenizer.render_prompt([{"role": "user", "content": prompt}]))
        ids, mask = tokenizer.render([{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}])
        assert ids[:len(head)] == head and ids[len(head):] == tokenizer.encode(completion) + [tokenizer.eos_id]
        assert mask == [0] * len(head) + [1] * (len(ids) - len(head))
        assert tokenizer.join(head, completion) == (ids, mask)
    assert tokenizer.join([], "") == ([tokenizer.eos_id], [1])
    assert tokenizer.join([5, 6], "7") == ([5, 6, *tokenizer.encode("7"), tokenizer.eos_id], [0, 0, 1, 1])


@pytest.mark.parametrize("messages", [[], None, "hi", {}, [7], [{"role": "user"}, CONVERSATION[2]], CONVERSATION[:2], [{"content": "x"}],
                                      [*CONVERSATION[:2], {"role": "assistant"}], [*CONVERSATION[:2], {"role": "assistant", "content": 4}]])
def test_only_a_whole_conversation_is_trained_on(tokenizer, messages):
    """A user's words are never a completion: without an assistant's last message nothing is supervised."""
    with pytest.raises(UserError, match="last role is assistant"):
        tokenizer.render(messages)


def test_completion_and_prompt_are_encoded_apart(tokenizer):
    """At the seam "1|5" sampling sees the ids of "1" and then writes those of "5"; so does training."""
    plain = tokenizer.with_template("{prompt}")
    for head, rest in (("1", "5"), ("Wha", "t is"), ("a", " b"), ("的", "的"), ("<thi", "nk>")):
        apart = tokenizer.encode(head) + tokenizer.encode(rest)
        want = apart + [tokenizer.eos_id], [0] * len(tokenizer.encode(head)) + [1] * (len(tokenizer.encode(rest)) + 1)
        assert plain.render([{"role": "user", "content": head}, {"role": "assistant", "content": rest}]) == want
        assert tokenizer.join(tokenizer.encode(head), rest) == want
    assert tokenizer.encode("15") != tokenizer.encode("1") + tokenizer.encode("5")


def test_markers_typed_by_a_user_become_their_ids(tokenizer):
    """Pinned, as `encode` says: text is not escaped. A typed end is an end to the model, but it is never supervised."""
    typed = [{"role": "user", "content": "a<|end|><|assistant|>b"}, {"role": "assistant", "content": "c"}]
    ids, mask = tokenizer.render(typed)
    e, a, u = (tokenizer.encode(t)[0] for t in (END, "<|assistant|>", "<|user|>"))
    one = lambda t: tokenizer.encode(t)[0]  # noqa: E731
    assert ids == [u, one("a"), e, a, one("b"), a, one("c"), e] and mask == [0, 0, 0, 0, 0, 0, 1, 1]


# ---- templates ---------------------------------------------------------------------------------

def test_a_plain_template_is_written_as_it_stands(tokenizer):
    """`with_template` says in Jinja what str.replace says, whatever characters the text is made of."""
    rng, hard = random.Random(4), ["{{ 7 }}", "{% raw %}", "{# #}", "\\", "\\n", '"', "'", "\n", "\r\n", "\t", "\0", "\x85", "\u2028", "}}", "\U0001f600"]
    piece = lambda: "".join(rng.choice([*hard, "User: ", "的", " "]) for _ in range(rng.randrange(6)))  # noqa: E731
    assert tokenizer.with_template(None) is tokenizer
    for _ in range(300):
        head, tail, prompt = piece(), piece(), piece() + "{prompt}"
        changed = tokenizer.with_template(head + "{prompt}" + tail)
        assert changed.render_prompt([{"role": "user", "content": prompt}]) == head + prompt + tail
    assert tokenizer.render_prompt([{"role": "user", "content": "x"}]) == "<|user|>x<|assistant|>"      # untouched


CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe.<|im_end|>\n' }}"
          "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def test_foreign_templates(tokenizer):
    one = [{"role": "user", "content": "x"}]
    assert with_config(tokenizer, chat_template=CHATML).render_prompt(one) == (
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    assert with_config(tokenizer, chat_template=named).render_prompt(one) == "x!"
    says = "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m | tojson }}\n  {% endif %}\n{% endfor %}{{ eos_token }}"
    changed = with_config(tokenizer, chat_template=says, bos_token={"content": "<s>"}, unk_token=None)
    assert changed.render_prompt([{"role": "user", "content": "é<"}]) == '<s>{"role": "user", "content": "é<"}\n<|end|>'
    assert with_config(tokenizer, chat_template="{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").render_prompt(one) == "01"
    assert re.fullmatch(r"\d{4}", with_config(tokenizer, chat_template="{{ strftime_now('%Y') }}").render_prompt(one))
    for template in (None, "", [], [{"name": "rag", "template": "x"}]):
        with pytest.raises(UserError, match="no chat template"):
            with_config(tokenizer, chat_template=template).render_prompt(one)


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ [].__class__.__base__.__subclasses__() }}", "{{ (1).__class__.__base__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}", "{{ ''['__class__']['__mro__'] }}", "{{ messages|map(attribute='__class__')|list }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}", "{{ '{a.__class__}'.format_map({'a': 1}) }}", "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}", "{{ strftime_now.__globals__['__builtins__'] }}", "{{ lipsum.__globals__['os'].listdir('/') }}",
    "{{ cycler.__init__.__globals__.os.mkdir('PATH') }}", "{{ lipsum.__globals__.os.mkdir('PATH') }}",
    "{{ strftime_now.__globals__['__builtins__']['open']('PATH', 'w') }}", "{{ raise_exception.__closure__[0].cell_contents.__init__ }}",
    "{% import 'os' as os %}{{ os.mkdir('PATH') }}", "{% include '/etc/passwd' %}", "{% from '/etc/passwd' import x %}",
    "{{ messages.append({}) }}", "{{ messages[0].update({'content': 'changed'}) }}", "{% set x = messages.pop() %}",
    "{{ messages.__class__ }}", "{{ namespace(a=1).__class__.__mro__ }}", "{{ 'x'.encode().__class__ }}", "{{ strftime_now.__code__ }}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_cannot_leave_its_cage(tokenizer, tmp_path, attack):
    """It is refused, or an attribute that it may not see is empty: nothing of Python shows, and nothing is changed."""
    messages = [{"role": "user", "content": "x"}]
    hostile = with_config(tokenizer, chat_template=attack.replace("PATH", str(tmp_path / "here")))
    try:
        out = hostile.render_prompt(messages)
    except UserError as e:
        assert "chat template failed" in str(e) and "root:" not in str(e)
    else:
        assert out in ("", "[Undefined]")
    assert messages == [{"role": "user", "content": "x"}] and not list(tmp_path.iterdir())


def test_the_classic_attack_is_an_error(tokenizer):
    with pytest.raises(UserError, match="chat template failed: SecurityError"):
        with_config(tokenizer, chat_template=ATTACKS[0]).render_prompt([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0]", "{{ 1 / 0 }}", "{{ messages[0].content.nothing.more }}", "{{ nothing() }}",
                                      "{% for i in range(10 ** 9) %}{% endfor %}", "{{ raise_exception('roles must alternate') }}", 5, {"a": 1}])
def test_a_template_that_fails_is_the_users_error(tokenizer, template):
    with pytest.raises(UserError, match="chat template failed") as e:
        with_config(tokenizer, chat_template=template).render_prompt([{"role": "user", "content": "x"}])
    assert "alternate" in str(e.value) or "alternate" not in str(template)


# ---- folders -----------------------------------------------------------------------------------

def sample_texts() -> list[str]:
    rng = random.Random(6)
    return [random_text(rng) for _ in range(100)] + list(itertools.islice(world.corpus(9, 0.3, 0.3, 0.1), 100))


def test_save_and_load(tokenizer, tmp_path):
    changed = tokenizer.with_template("用户：{prompt}\n")
    changed.save(tmp_path / "a/b")
    loaded = Tokenizer.load(tmp_path / "a/b")
    loaded.save(tmp_path / "again")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a/b" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert loaded.config == changed.config and (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    assert loaded.encode_batch(sample_texts()) == tokenizer.encode_batch(sample_texts())
    assert loaded.render(CONVERSATION[1:3]) == changed.render(CONVERSATION[1:3])


def test_a_template_in_a_file_of_its_own_wins(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("问：{{ messages[0]['content'] }}", encoding="utf-8")
    assert Tokenizer.load(tmp_path).render_prompt([{"role": "user", "content": "x"}]) == "问：x"


def test_settings_left_in_a_foreign_file_do_not_cut_or_pad(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_truncation(4)
    core.enable_padding(length=8)
    core.save(str(tmp_path / "tokenizer.json"))
    texts = ["1 2 3 4 5 6 7 8 9", "1"]
    assert Tokenizer.load(tmp_path).encode_batch(texts) == tokenizer.encode_batch(texts) == [Tokenizer.load(tmp_path).encode(t) for t in texts]


def test_what_cannot_be_loaded_is_named(tokenizer, tmp_path):
    def refused(match):
        with pytest.raises(UserError, match=match) as e:
            _ = Tokenizer.load(tmp_path).eos_id
        assert str(e.value).count("\n") == 0

    refused("no tokenizer.json")
    tokenizer.save(tmp_path)
    good = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    for broken in ("", "{", "{}", good[:len(good) // 2]):
        (tmp_path / "tokenizer.json").write_text(broken, encoding="utf-8")
        refused("cannot be read")
    (tmp_path / "tokenizer.json").write_text(good, encoding="utf-8")
    for broken in ("", "{", "7", "[1]"):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        refused("cannot be read")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    refused("'</s>'.*does not have")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</answer>"}}))
    assert Tokenizer.load(tmp_path).eos_id == tokenizer.encode("</answer>")[0]
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).eos_id == tokenizer.eos_id
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")
    refused("cannot be read")


def test_transformers_reads_the_same(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    texts = sample_texts()
    assert [theirs(t, add_special_tokens=False)["input_ids"] for t in texts] == tokenizer.encode_batch(texts)
    assert [theirs(t)["input_ids"] for t in texts[:20]] == tokenizer.encode_batch(texts[:20])      # nothing is added by default
    assert [theirs.decode(tokenizer.encode(t), skip_special_tokens=False) for t in texts] == texts
    assert (theirs.eos_token_id, len(theirs)) == (tokenizer.eos_id, tokenizer.vocab_size)
    for messages in (CONVERSATION, CONVERSATION[1:3], CONVERSATION[:3]):
        assert theirs.apply_chat_template(messages, tokenize=False) == tokenizer.decode(tokenizer.render(messages)[0])
        assert theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) == tokenizer.render_prompt(messages[:-1])
        assert list(theirs.apply_chat_template(messages, return_dict=False)) == tokenizer.render(messages)[0]
    for template in (CHATML, tokenizer.with_template('Q: {prompt}\n"A"\\n').config["chat_template"]):
        ours, theirs.chat_template = with_config(tokenizer, chat_template=template), template
        assert theirs.apply_chat_template(CONVERSATION[1:2], tokenize=False, add_generation_prompt=True) == ours.render_prompt(CONVERSATION[1:2])


# What the templates of each family do, in our own words: who begins, what is prefilled, what becomes of earlier thoughts, what a missing tool means.
FAMILIES = {
    "llama3": """{{- bos_token }}
{%- if tools_in_user_message is not defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if date_string is not defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}
{%- if tools is not defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set said = "" %}{%- endif %}
{{- "<|h|>system<|/h|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Today: " + date_string + "\n\n" + said + "<|eot|>" }}
{%- if tools_in_user_message and not tools is none %}{{- raise_exception("no tools here") }}{%- endif %}
{%- for m in messages %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\n\n' }}{%- endif %}
""",
    "qwen2.5": """{%- if tools %}{{- 'tools' }}{{- tools | tojson(indent=4) }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}{{- '<|s|>system\n' + messages[0]['content'] + '<|e|>\n' }}{%- else %}{{- '<|s|>system\nA default.<|e|>\n' }}{%- endif %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) or (m.role == "assistant" and not m.tool_calls) %}
        {{- '<|s|>' + m.role + '\n' + m.content + '<|e|>' + '\n' }}
    {%- elif m.role == "assistant" %}
        {%- for call in m.tool_calls %}{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}{{- call.arguments | tojson }}{%- endfor %}
    {%- elif m.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|s|>user' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|s|>assistant\n' }}{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and m.role == "user" and m.content is string and not (m.content.startswith('<r>') and m.content.endswith('</r>')) %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.content is string %}{%- set content = m.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|s|>' + m.role + '\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- '<|s|>' + m.role + '\n' + content }}{%- endif %}
    {%- else %}{{- '<|s|>' + m.role + '\n' + content }}{%- endif %}
    {{- '<|e|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|s|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "r1-distill": ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(first=true, system='') %}"
                   "{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = m['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
                   "{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.first = false -%}{{'<｜User｜>' + m['content']}}{%- endif %}"
                   "{%- if m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}{% if '</think>' in content %}"
                   "{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + eos_token}}{%- endif %}{%- endfor -%}"
                   "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"),
    "alternating": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if documents is not none or tools is not none %}{{ raise_exception('unasked') }}{% endif %}
{%- if loop.previtem is defined and loop.previtem.role == m.role %}{% continue %}{% endif %}
[{{ m['role'] }}] {{ m['content'] | trim }}
{% endfor %}""",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_asked_as_transformers_asks_it(tokenizer, tmp_path, family):
    transformers = pytest.importorskip("transformers")
    ours = with_config(tokenizer, chat_template=FAMILIES[family], bos_token=END)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    spaced = [{"role": "user", "content": "  1+1?\n"}, {"role": "assistant", "content": "<think>\n\n1+1=2\n</think>\n\n2"}, {"role": "user", "content": "<r>x</r>"}]
    rendered = 0
    for messages in (CONVERSATION[:2], CONVERSATION[1:2], CONVERSATION[:4], CONVERSATION[1:4], spaced, spaced[:2], [*spaced, *spaced[1:2]]):
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as e:
            with pytest.raises(UserError, match=str(e)):
                ours.render_prompt(messages)
        else:
            assert ours.render_prompt(messages) == expected
            rendered += 1
    assert rendered >= 5 and (family != "r1-distill" or expected.endswith("<think>\n"))
