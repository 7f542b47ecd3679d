"""DeepSeek-R1 from scratch: every stage of the recipe in plain PyTorch. Start reading at grpo.py."""
