"""A tiny text model, as a folder of the hub has it."""

import torch

WORDS = (
    *("the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "mat"),
    *("log", "tree", "over", "under", "and", "then", "slept", "ate", "red", "blue"),
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_bert(folder, **changes):
    """Write a randomly initialised BERT and its tokenizer of words; return both."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "words.txt"), model_max_length=20)
    (folder / "words.txt").unlink()
    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "initializer_range": 0.4,  # as models are drawn, all texts look much alike
    }
    torch.manual_seed(3)
    model = transformers.BertModel(transformers.BertConfig(**settings | changes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
