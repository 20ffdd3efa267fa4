"""Small random models of transformers, and what the tests of LoRA do with them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 40


def gpt2() -> nn.Module:
    """Conv1D layers, a fused c_attn, word embeddings `wte`, the head `score`."""
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=VOCABULARY, n_positions=12, num_labels=3,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _made(transformers.GPT2ForSequenceClassification, config)


def bert() -> nn.Module:
    """nn.Linear layers with biases, an embedding with a padding row, the head `classifier`."""
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        vocab_size=VOCABULARY, max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    return _made(transformers.BertForSequenceClassification, config)


def llama() -> nn.Module:
    """nn.Linear layers without biases, `embed_tokens` tied to `lm_head`."""
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        vocab_size=VOCABULARY, max_position_embeddings=12, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _made(transformers.LlamaForCausalLM, config)


def distilbert() -> nn.Module:
    """A head of two layers, `pre_classifier` and `classifier`."""
    config = transformers.DistilBertConfig(
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        vocab_size=VOCABULARY,
        max_position_embeddings=12,
        num_labels=3,
    )
    return _made(transformers.DistilBertForSequenceClassification, config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "bert": bert,
    "llama": llama,
    "distilbert": distilbert,
}


def _made(kind: type[nn.Module], config: object) -> nn.Module:
    """A model whose every tensor is drawn, so that none is a neutral element and each text has its own answer."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = kind(config)
        for name, parameter in model.named_parameters():
            around = 1.0 if parameter.dim() == 1 and not name.endswith("bias") else 0.0
            parameter.data.normal_(around, 0.3)
    return model.eval()


def token_ids() -> Tensor:
    """Three texts of six tokens, the last two of the second one padding."""
    ids = torch.randint(2, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(5))
    ids[1, 4:] = 0
    return ids


def logits(model: nn.Module) -> Tensor:
    """The answer of a model to `token_ids`."""
    ids = token_ids()
    return model(input_ids=ids, attention_mask=(ids != 0).long()).logits


def shaken_(parameters: list[nn.Parameter], seed: int = 3) -> None:
    """Give parameters random values, so that no B is zero and no head is as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in a model."""
    return copy.deepcopy(dict(model.state_dict()))
