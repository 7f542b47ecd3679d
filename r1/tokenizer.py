"""Text <-> token ids: a byte-level BPE trained here, or any checkpoint's tokenizer.json with its chat template.

Whoever makes tokens makes their mask: `render` turns a conversation into (ids, mask) in one place.
"""
from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1.types import UserError

END = "<|end|>"                      # ends documents and assistant turns
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
CHAT = ["<|system|>", "<|user|>", "<|assistant|>"]
SPECIAL = [END, *CHAT, *TAGS]
# Words take the space before them; numbers come in pieces below 100; Han runs stay together.
SPLIT = r" ?[A-Za-z]+|[0-9]{1,2}|\p{Han}+|\s| ?[^\sA-Za-z0-9\p{Han}]"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


class Tokenizer:
    def __init__(self, core: tokenizers.Tokenizer, config: dict):
        """`core` maps text to ids; `config` is the content of tokenizer_config.json."""
        self.core, self.config = core, config
        self._template = None

    @cached_property
    def vocab_size(self) -> int:
        """Ids below it may stand for something; a model may have more, which only pad its matrices."""
        return max(self.core.get_vocab().values()) + 1

    @property
    def eos_id(self) -> int:
        token = self.config.get("eos_token") or END
        token = token["content"] if isinstance(token, dict) else token
        found = self.core.token_to_id(token)
        if found is None:
            raise UserError(f"tokenizer_config.json names the end token {token!r}, which tokenizer.json does not have")
        return found

    def encode(self, text: str) -> list[int]:
        """Special tokens written out in the text become their single ids; none is added."""
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self.core.decode(ids, skip_special_tokens=False)

    def render_prompt(self, messages: list[dict]) -> str:
        """The conversation as the model's chat template writes it, up to where the assistant begins.

        Raises UserError when the model has no template or the template refuses the messages."""
        source = self.config.get("chat_template")
        if isinstance(source, list):                 # several named templates
            source = next((t.get("template") for t in source if t.get("name") == "default"), None)
        if not source:
            raise UserError("this model has no chat template; name a plain `template` with {prompt} instead")
        named = {k: v["content"] if isinstance(v, dict) else v for k, v in self.config.items() if k.endswith("_token") and v is not None}
        try:
            self._template = self._template or _environment().from_string(source)
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **named)
        except Exception as e:    # a template is a foreign program: whatever it does is told, not shown as ours
            raise UserError(f"the model's chat template failed: {type(e).__name__}: {e}") from e

    def render(self, messages: list[dict]) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation whose last message is the assistant's; it and the EOS are supervised.

        Prompt and completion are encoded apart, so that SFT sees the very ids that sampling will see. Raises UserError
        for a list of messages that is none."""
        whole = isinstance(messages, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages)
        if not whole or not messages or messages[-1].get("role") != "assistant":
            raise UserError("messages must be a list of {role, content} whose contents are texts and whose last role is assistant")
        return self.join(self.encode(self.render_prompt(messages[:-1])), messages[-1]["content"])

    def join(self, prompt: list[int], completion: str) -> tuple[list[int], list[int]]:
        """(ids, mask): `prompt` unsupervised, then the completion and EOS supervised."""
        answer = self.encode(completion) + [self.eos_id]
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)

    def with_template(self, template: str | None) -> Tokenizer:
        """The same tokenizer whose chat template writes a plain `template` with {prompt}; None changes nothing."""
        if template is None:
            return self
        # as literals of Jinja, which knows no surrogate pairs
        head, tail = (json.dumps(text, ensure_ascii=False) for text in template.split("{prompt}", 1))
        return Tokenizer(self.core, {**self.config, "chat_template": f"{{{{ {head} }}}}{{{{ messages[-1]['content'] }}}}{{{{ {tail} }}}}"})

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "tokenizer.json").write_text(self.core.to_str(pretty=True), encoding="utf-8")     # core.save raises no OSError
        (path / "tokenizer_config.json").write_text(json.dumps(self.config, indent=1, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """From a Hugging Face folder. Raises UserError when a file is missing or broken."""
        path = Path(path)
        if not (path / "tokenizer.json").is_file():
            raise UserError(f"{path} has no tokenizer.json: name a model folder that carries its tokenizer")
        try:
            core = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            core.no_truncation()      # some files carry the settings of the program that saved them,
            core.no_padding()         # and would shorten and pad in silence
            file = path / "tokenizer_config.json"
            config = dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
            if (path / "chat_template.jinja").is_file():
                config["chat_template"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
        except Exception as e:    # tokenizers raises bare Exception
            raise UserError(f"the tokenizer in {path} cannot be read: {e}") from e
        return Tokenizer(core, config)

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE on `texts`. Every number below 100 becomes one token, however rare."""
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        core.decoder = decoders.ByteLevel()
        numbers = itertools.repeat(" ".join(map(str, range(100))), 10_000)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
                                      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
        core.train_from_iterator(itertools.chain(numbers, texts), trainer)
        return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
                                "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False})


def _environment():
    """Jinja as Hugging Face sets it up for chat templates: sandboxed, blocks trimmed."""
    from datetime import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def stop(message):
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    env.globals["raise_exception"] = stop
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env
