"""GPT, written out, through the packed engine: the same states and gradients as one text at a time."""

from __future__ import annotations

import pytest
import torch

from veneer.engine.packing import pack
from veneer.engine.written_out import WrittenOutRunner, gpt_program
from veneer.lora import LoraConfig, adapter_parameters, attach
from veneer.lora.book import replace_linear_with_lora
from veneer.models.gpt import GPT, GPTConfig

LENGTHS = (3, 17, 1, 9, 9, 12)


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(emb_dim=32, n_heads=4, n_layers=3, context_length=32, vocab_size=50))


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_states_are_those_of_each_text_alone(mode) -> None:
    gpt, batch = model(), pack(texts())
    with torch.no_grad():
        found = WrittenOutRunner(gpt, mode).hidden_states(batch)
        alone = [gpt.hidden_states(torch.tensor([texts()[i]]))[0] for i in batch.order]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-4)  # fp32 sums in another order


def test_gradients_are_those_of_the_padded_run() -> None:
    gradients = []
    for mode in ("packed", "padded"):
        gpt, batch = model(), pack(texts())
        gpt.requires_grad_(False)
        torch.manual_seed(2)
        replace_linear_with_lora(gpt, rank=2, alpha=2)
        for name, parameter in gpt.named_parameters():
            if name.endswith("lora.B"):
                torch.nn.init.normal_(parameter, std=0.1)
        hidden = WrittenOutRunner(gpt, mode).hidden_states(batch)
        gpt.out_head(hidden[batch.layout.last]).square().mean().backward()
        gradients.append({name: p.grad for name, p in gpt.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 2 * (6 * 3 + 1)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)  # fp32


def test_the_program_gives_the_states_and_gradients_of_the_seam() -> None:
    results = []
    for program in (False, True):
        gpt, batch = model(), pack(texts())
        attach(gpt, LoraConfig(r=2, target_modules="all-linear", modules_to_save=["out_head"],
                               init_lora_weights=False), seed=0)  # fmt: skip
        runner = WrittenOutRunner(gpt, program=gpt_program(gpt) if program else None)
        assert runner.program is None or runner.program.ready()
        read = runner.hidden_states(batch, batch.layout.last)
        gpt.out_head(read).square().mean().backward()
        results.append((read, {name: p.grad for name, p in adapter_parameters(gpt)}))
    assert len(results[0][1]) == 2 * 6 * 3 + 1
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)  # fp32
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)
