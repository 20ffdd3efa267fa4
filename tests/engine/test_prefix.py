"""The frozen prefix: the same hidden states and gradients as without it, found again, never mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from reference.families import FAMILIES
from veneer.engine import Runner, pack, prefix
from veneer.engine.beginnings import tree_of
from veneer.engine.kept_states import KeptStates
from veneer.engine.prefix import PrefixStore, build_prefix, first_trained_block
from veneer.errors import VeneerError
from veneer.lora import LoraConfig, adapter_parameters, attach

SECOND_BLOCK = {
    "GPT-2": (r".*h\.1\.attn\.c_attn", "score"),
    "BERT": (r".*layer\.1\.attention\.self\.(query|value)", "classifier"),
    "RoBERTa": (r".*layer\.1\.attention\.self\.(query|value)", "classifier"),
}


class Texts:
    """Token ids as the engine takes them; few different tokens, so that many texts begin alike."""

    def __init__(self, n: int = 60, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.ids = [draw.integers(3, 6, size=draw.integers(1, 30)) for _ in range(n)]
        self.lengths = np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.ids[index]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test."""
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path))
    return tmp_path / "prefixes"


def adapted(family: str) -> Runner:
    """A runner of a small base whose second block is adapted, with weights that count."""
    model = FAMILIES[family].model()
    targets, head = SECOND_BLOCK[family]
    attach(model, LoraConfig(r=2, target_modules=targets, modules_to_save=(head,)), seed=0)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.normal_(0.0, 0.3)
    return Runner.of(model, mode="packed")


def kept(runner: Runner, texts: Texts, *, causal: bool, base_hash: str = "a") -> PrefixStore:
    """The prefix of `texts` below the second block."""
    assert runner.program is not None
    return build_prefix(
        runner.program,
        texts,
        first_trained_block(runner.program, runner.model),
        base_hash=base_hash,
        dtype=torch.float32,
        device=torch.device("cpu"),
        causal=causal,
    )


@pytest.mark.parametrize("family", SECOND_BLOCK)
def test_states_and_gradients_are_those_of_the_whole_computation(family: str) -> None:
    runner, texts = adapted(family), Texts()
    store = kept(runner, texts, causal=family == "GPT-2")
    assert store.start == 1
    assert (store.shared > 0.1) == (family == "GPT-2")  # only causal beginnings can be shared
    rows = [7, 3, 41, 3, 12]
    batch = pack([texts[i] for i in rows])
    reads = batch.layout.last if family == "GPT-2" else batch.layout.first
    below = store.below([rows[i] for i in batch.order], torch.device("cpu"))
    weights = [p for name, p in adapter_parameters(runner.model) if "lora" in name]
    assert weights
    results = []
    for states in (runner.hidden_states(batch, reads, below), runner.hidden_states(batch, reads)):
        factor = torch.arange(states.numel()).view_as(states).sin()
        results.append([states, *torch.autograd.grad((states * factor).sum(), weights)])
    for with_prefix, whole in zip(*results, strict=True):
        assert_close(with_prefix, whole, rtol=1e-4, atol=1e-5)  # fp32 sums in another order


def test_a_later_run_reads_what_an_earlier_one_wrote(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, texts = adapted("GPT-2"), Texts()
    first = kept(runner, texts, causal=True)
    monkeypatch.setattr(prefix, "_compute", lambda *_: pytest.fail("computed again"))
    again = kept(runner, texts, causal=True)
    assert len(list(own_cache.glob("*.bin"))) == 1
    assert torch.equal(first.states, again.states)


@pytest.mark.parametrize("change", ["base", "tokens"])
def test_another_base_or_other_tokens_are_computed_on_their_own(change: str, own_cache: Path) -> None:
    runner = adapted("GPT-2")
    kept(runner, Texts(), causal=True)
    other = Texts(seed=1) if change == "tokens" else Texts()
    kept(runner, other, causal=True, base_hash="b" if change == "base" else "a")
    assert len(list(own_cache.glob("*.bin"))) == 2


def test_a_file_of_another_size_is_not_believed(own_cache: Path) -> None:
    runner, texts = adapted("GPT-2"), Texts()
    states = kept(runner, texts, causal=True).states.clone()
    (file,) = own_cache.glob("*.bin")
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(kept(runner, texts, causal=True).states, states)


def test_rows_of_a_file_come_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "states").write_bytes(b"\0" * (10 * 3 * 2))
    states = torch.arange(30, dtype=torch.bfloat16).view(10, 3)
    written = KeptStates(tmp_path / "states", (10, 3), torch.bfloat16, writing=True)
    written.write(4, states[4:])
    written.write(0, states[:4])
    written.close()
    kept = KeptStates(tmp_path / "states", (10, 3), torch.bfloat16)
    assert torch.equal(kept.read([(7, 9), (0, 1), (7, 7), (2, 10)]), states[[7, 8, 0, *range(2, 10)]])
    assert kept.read([]).shape == (0, 3)
    assert kept.nbytes == states.nbytes


def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is nearly full takes a part of what is written; the rest must not be left out without a word."""
    path = tmp_path / "states"
    path.touch()
    kept, rows = KeptStates(path, (6, 5), torch.float32, writing=True), torch.randn(6, 5)
    file = kept._file

    class Sparing:
        seek, close = file.seek, file.close

        @staticmethod
        def write(given: memoryview) -> int:
            return file.write(given[:7]) or 0

    monkeypatch.setattr(kept, "_file", Sparing())
    kept.write(0, rows)
    kept.close()
    assert torch.equal(KeptStates(path, (6, 5), torch.float32).read([(0, 6)]), rows)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    file = tmp_path / "states"
    file.write_bytes(b"\0" * 40)
    kept = KeptStates(file, (5, 2), torch.float32)
    file.write_bytes(b"\0" * 39)
    with pytest.raises(VeneerError, match=r"states has been cut short.*Delete it"):
        kept.read([(3, 5)])


def test_an_interrupted_computation_leaves_no_file(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = adapted("GPT-2")
    monkeypatch.setattr(prefix, "_batches", lambda *_, **__: [[0], [1], [10**9]])
    with pytest.raises(IndexError):
        kept(runner, Texts(), causal=True)
    assert list(own_cache.iterdir()) == []


def test_the_oldest_go_when_there_are_too_many_bytes(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = adapted("GPT-2")
    size = kept(runner, Texts(), causal=True).states.nbytes
    monkeypatch.setattr(prefix, "LIMIT_BYTES", int(1.5 * size))
    newest = kept(runner, Texts(), causal=True, base_hash="b")
    assert [path.stat().st_size for path in own_cache.glob("*.bin")] == [newest.states.nbytes]


@pytest.mark.parametrize(
    ("targets", "lowest"),
    [
        (r".*h\.1\..*c_fc", 1),
        (r".*h\.0\.attn\.c_proj", 0),
        (r".*wte", 0),
        (r"score", 2),
    ],
)
def test_the_first_trained_block(targets: str, lowest: int) -> None:
    model = FAMILIES["GPT-2"].model()
    attach(model, LoraConfig(r=2, target_modules=targets), seed=0, strict=False)
    program = Runner.of(model, mode="packed").program
    assert program is not None
    assert first_trained_block(program, model) == lowest


@pytest.mark.parametrize("alike", [True, False], ids=["nodes", "tokens"])
def test_batches_have_about_the_same_number_of_states(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_BATCH_STATES", 127)
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 4, n) for n in generator.integers(1, 12, 400)]
    batches = prefix._batches(_Texts(texts), alike=alike)
    assert sorted(i for batch in batches for i in batch) == list(range(400))
    filled = []
    for batch in batches:
        packed = pack([torch.from_numpy(texts[i]) for i in batch])
        filled.append(len(tree_of(packed)[1]) if alike else packed.tokens)
        assert packed.tokens <= 2 * 127
    assert max(filled) <= 127
    full = [
        n
        for n, batch in zip(filled, batches, strict=True)
        if sum(len(texts[i]) for i in batch) <= 2 * 127 - 12
    ]
    assert min(full[:-1]) > 127 - 12


class _Texts:
    """Texts as `build_prefix` reads them."""

    def __init__(self, texts: list[Any]) -> None:
        self.texts, self.lengths = texts, [len(text) for text in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> Any:
        return self.texts[i]
