"""The harness from end to end on tiny models: every process starts, the sides agree, the figures are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import ABLATIONS, main
from benchmarks.baselines import grouped_batches, padded, random_batches
from benchmarks.materials import SEED, MissingMaterialError, _joined_rows, _rows, _write_tokenizer, make
from benchmarks.results import Results
from benchmarks.switches import SWITCHES, without
from benchmarks.workloads import WORKLOADS, default_names

from veneer.tasks.rendered import NOT_READ
from veneer.training.schedule import Plan


def test_a_quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out.json"
    assert (
        main(["--only", "tiny-prefix", "--quick", "--sides", "b", "--no-ablation", "--json", str(out)]) == 0
    )
    results = Results.from_json(json.loads(out.read_text(encoding="utf-8")))
    (found,) = results.workloads
    assert set(found.sides) == {"b", "ours"}
    ours, careful = found.sides["ours"], found.sides["b"]
    assert ours.parameters == careful.parameters == 2 * (32 + 96) + 2 * 32
    # A product in bf16 takes minutes where nothing computes in it.
    assert set(found.gemm_gflops) == {"fp32", found.precision}
    assert ours.once_s > 0.0
    assert ours.whole_s is not None
    assert ours.whole_s.median > ours.once_s
    assert ours.steps == careful.steps == 4
    assert min(ours.peak_bytes, careful.peak_bytes) > 50 * 2**20
    assert 0.0 < ours.of_floor.median < 1.0
    # The same weights, texts and order: a model of width 32 in bf16 against fp32 products of autocast.
    assert found.loss_difference is not None
    assert found.loss_difference < (1e-5 if found.precision == "fp32" else 0.02)
    ratio = found.ratio("b")
    assert ratio is not None
    assert ratio.least <= ratio.median <= ratio.most
    assert "tiny GPT-2, the last block" in capsys.readouterr().out


def test_what_is_not_here_is_left_out_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MissingMaterialError, match=r"sms_spam.*--data"):
        _rows(WORKLOADS["spam-gpt2"], tmp_path)


def test_the_recipes_have_their_own_texts(shared_data: Path) -> None:
    texts, labels = _rows(WORKLOADS["spam-gpt2"], shared_data)
    assert len(texts) == len(labels) == 1045
    assert len(_rows(WORKLOADS["predict-minilm"], shared_data)[0]) == 1000


def test_a_quick_run_on_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss over a vocabulary: the same as PEFT's, and the same tokens are counted."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out.json"
    assert (
        main(["--only", "tiny-instruction", "--quick", "--sides", "b", "--no-ablation", "--json", str(out)])
        == 0
    )
    (found,) = Results.from_json(json.loads(out.read_text(encoding="utf-8"))).workloads
    assert found.loss_difference is not None
    assert found.loss_difference < (1e-5 if found.precision == "fp32" else 0.02)
    assert found.sides["ours"].parameters == found.sides["b"].parameters
    assert 0.0 < found.sides["ours"].of_floor.median < 1.0


def test_instruction_rows_are_joined_whole(tmp_path: Path, shared_data: Path) -> None:
    workload = WORKLOADS["instruction-gpt2"]
    _write_tokenizer(workload.base, tmp_path, shared_data)
    texts, labels = _joined_rows(tmp_path, shared_data, workload.fixed_length)
    lengths = [len(text) for text in texts]
    assert max(lengths) <= 512
    assert np.mean(lengths) > 450
    assert lengths == [len(one) for one in labels]
    read = np.concatenate([one[:-1] for one in labels]) != NOT_READ
    following = np.concatenate([text[1:] for text in texts])
    np.testing.assert_array_equal(np.concatenate([one[:-1] for one in labels])[read], following[read])
    assert 0.1 < read.mean() < 0.6


def test_materials_are_the_same_each_time(tmp_path: Path) -> None:
    one, two = (make(WORKLOADS["tiny-prefix"], tmp_path / name, tmp_path) for name in ("one", "two"))
    assert Path(one.adapter).read_bytes() == Path(two.adapter).read_bytes()
    np.testing.assert_array_equal(one.read_texts()[0], two.read_texts()[0])
    assert one.targets == ("transformer.h.2.attn.c_attn",)


def test_random_batches_are_the_loops_own() -> None:
    lengths = np.arange(1, 38)
    plan = Plan(len(lengths), 8, 1, 3, SEED)
    for epoch in (0, 2):
        ours = [plan.batches(epoch * plan.steps_per_epoch + i)[0] for i in range(plan.steps_per_epoch)]
        for expected, found in zip(ours, random_batches(lengths, 8, epoch), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_grouped_batches_hold_every_text_once_and_pad_less() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    grouped, plain = grouped_batches(lengths, 8, 0), random_batches(lengths, 8, 0)
    assert sorted(np.concatenate(grouped)) == list(range(1000))

    def padding(batches: list[np.ndarray]) -> int:  # type: ignore[type-arg]
        return sum(len(rows) * int(lengths[rows].max()) for rows in batches) - int(lengths.sum())

    assert padding(grouped) < 0.1 * padding(plain)


def test_padding_stands_on_the_right() -> None:
    ids, mask = padded([np.array([5, 6, 7]), np.array([8])], 4, 0)
    assert ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_switches_are_known_by_name() -> None:
    with pytest.raises(ValueError, match="no technique packings"), without(["packings"]):
        pass
    named = {name for names in ABLATIONS.values() for name in names}
    assert named == set(SWITCHES)  # each is switched off somewhere
    assert set(ABLATIONS) >= set(default_names())


def test_the_tests_models_are_not_measured() -> None:
    assert default_names()[0] == "spam-gpt2"
    assert not any(name.startswith("tiny") for name in default_names())
