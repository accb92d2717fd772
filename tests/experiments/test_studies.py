"""Tests what all studies share: options, a short run, resuming it, and pages."""

import dataclasses
import json
import pathlib
import shlex
import shutil

import numpy as np
import PIL.Image
import pytest
import tyro

from experiments import __main__ as main
from experiments.framework import checkpoints, discovery, output, pages, provenance
from experiments.networks import inception
from experiments.paper.crops_and_ensemble import network

STUDIES = discovery.studies()
RESULTS = pages.results(discovery.ROOT)
NAMES = [path.name for path in RESULTS]

IMAGENET = (
    "--dataset digits --validation test --configurations BN-x5 --steps 4 --epochs 1 "
    "--record-every 2 --checkpoint-every 2 --batch-size 8 --size 32 --width .015625 "
    "--threads 2 "
)

# Options that make a study short.
OPTIONS = {
    "accelerators": "--quick --platform tpu --network layer --no-memory",
    "accuracy": "--quick --elements 40 50",
    "batch_size": (
        "--quick --epochs 2 --batch-sizes 20 --examples 40 --hidden 10 --seeds 1"
    ),
    "benchmark": "--quick --rounds 3",
    "covariate_shift": (
        "--quick --steps 2 --record-every 1 --hidden 6 6 --seeds 1 --observed 20 "
        "--batch-size 10 --lengths 1"
    ),
    "crops_and_ensemble": (
        "--quick --steps 5 --seeds 2 --width 2 --test-images 40 --batch-size 8"
    ),
    "domains": ("--quick --steps 4 --hidden 6 --seeds 2 --examples 40 --batch-size 10"),
    "feature_scaling": "--quick --tables iris",
    "figure1": (
        "--seeds 2 --steps 4 --record-every 1 --checkpoint-every 2 --hidden 5 "
        "--learning-rate .1 --replacement"
    ),
    "fine_tune": "--new fashion_mnist --steps 10 --weights given.safetensors",
    "identity": "--quick --steps 4 --records 2 --batch-sizes 5 --seeds 2",
    "imagenet": IMAGENET,
    "inference_statistics": (
        "--quick --steps 2 --record-every 1 --batch-sizes 4 --hidden 5 --seeds 1"
    ),
    "initialisation": (
        "--quick --steps 4 --hidden 5 --activations relu --seeds 2 --scales 2 "
        "--lowest 1e-2 --highest 1e30"
    ),
    "learning_rate": (
        "--quick --steps 4 --hidden 5 --activations relu --seeds 2 --rates 2 "
        "--lowest 1e-2 --highest 1e38"
    ),
    "learning_rate_ladder": (
        "--dataset digits --steps 40 --record-every 4 --checkpoint-every 20 --seeds 2 "
        "--test-images 50 --rates 2 --depths --modules 3c --width 0.02 --stem-stride 1"
    ),
    "outside_gradient": "--quick --steps 20 --records 2 --hidden 8 --seeds 2",
    "padding": (
        "--quick --steps 2 --record-every 1 --units 4 --seeds 1 --tested 20 "
        "--batch-size 10 --examples 20"
    ),
    "placement": (
        "--quick --steps 2 --residual-steps 1 --record-every 1 --hidden 6 "
        "--channels 2 --seeds 1 --tested 20 --batch-size 10 --activations relu"
    ),
    "policy_cost": "--part measured --quick --rounds 2 --policies none Local Stale",
    "regularisation": (
        "--quick --steps 4 --record-every 4 --hidden 6 --seeds 1 --examples 20 "
        "--batch-size 10 --dropout 0 0.4 --l2 1"
    ),
    "reinforcement": (
        "--quick --steps 20 --records 2 --episodes 1 --random 10 --units 4 "
        "--batch-size 4 --warmup 2"
    ),
    "saturation": (
        "--quick --steps 4 --records 2 --hidden 6 6 --activations relu --seeds 2"
    ),
    "scale_invariance": (
        "--quick --steps 10 --records 2 --hidden 10 10 --activations relu --seeds 2"
    ),
    "small_batches": (
        "--quick --batch-sizes 10 20 --examples 20 --channels 8 --seeds 1"
    ),
    "sync_cost": "--quick",
    "sync_policies": (
        "--quick --steps 130 --record-every 65 --hidden 12 --probes 2 --seeds 1 "
        "--tested 100"
    ),
    "whitening": (
        "--quick --steps 4 --records 2 --hidden 3 --seeds 2 --units 4 "
        "--examples 8 40 --batch-sizes 20"
    ),
}

# These have short runs of their own, with fakes or with what they need installed.
OWN_RUNS = ("accelerators", "benchmark", "fine_tune", "policy_cost", "sync_cost")
SHORT = sorted(set(STUDIES) - set(OWN_RUNS))
# These do not train, or train like others and take long.
NOT_STOPPED = (
    "accuracy",
    "covariate_shift",
    "domains",
    "feature_scaling",
    "padding",
    "reinforcement",
    "small_batches",
)

BAD_OPTIONS = {
    "accelerators": [
        ("--network resnet", r"`network` must be one of \['bn_inception', .* resnet"),
        ("--device --rounds 1", "`rounds` must be at least 2, got 1"),
    ],
    "accuracy": [("--elements 1", "`elements` must be at least 2, got")],
    "batch_size": [
        ("--batch-sizes 2 1", "`batch_sizes` must be at least 2, got"),
        ("--examples 100", "`examples` must be at least 512, got 100"),
        ("--groups 7", "`groups` must divide the units of every layer, .* got 7"),
        ("--momentum -0.1", r"`momentum` must lie in \[0, 1\]"),
        ("--rate-per-example 0", "`rate_per_example` must be positive"),
    ],
    "benchmark": [("--rounds 1", "`rounds` must be at least 2, got 1")],
    "covariate_shift": [
        ("--activation softsign", "`activation` must be among"),
        ("--lengths 0 1", "`lengths` must be positive, got"),
        ("--hidden 100 50", "`hidden` must be layers of one width, got"),
        ("--observed 1", "`observed` must be at least 2, got 1"),
    ],
    "crops_and_ensemble": [
        ("--steps 0", "`steps` must be at least 1, got 0"),
        ("--seeds 0", "`seeds` must be at least 1, got 0"),
        ("--test-images 0", "`test_images` must be at least 1, got 0"),
        ("--learning-rate nan", "`learning_rate` must be positive"),
    ],
    "domains": [
        ("--batch-size 2", "`batch_size` must be at least 4, got 2"),
        ("--rates 0.1 0", r"`rates` must be positive and finite, got \(0.1, 0.0\)"),
    ],
    "feature_scaling": [
        ("--tables titanic", "`tables` must be among"),
        ("--tables", "`tables` must be among"),
        ("--tolerance 1", r"`tolerance` must lie in \(0, 1\), got 1.0"),
    ],
    "figure1": [
        ("--steps 777", "`steps` must be a multiple"),
        ("--checkpoint-every 777", "`checkpoint_every` must be a multiple"),
        ("--steps 0", "`steps` must be at least 1, got 0"),
        ("--seeds 0", "`seeds` must be at least 1, got 0"),
        ("--batch-size 0", "`batch_size` must be at least 1, got 0"),
        ("--batch-size 2000", "`batch_size` must be at most the 1500"),
        ("--hidden 100 0", r"`hidden` must be at least 1, got \(100, 0\)"),
        ("--learning-rate -1", "`learning_rate` must be positive"),
        ("--learning-rate nan", "`learning_rate` must be positive"),
        ("--bn-momentum 2", r"`bn_momentum` must lie in \[0, 1\], got 2"),
        ("--ink 128", "`ink` must be left out for grey 8x8 digits: .* got 128"),
        ("--out setup.cfg/x", "`out` must be a folder that can be written"),
    ],
    "fine_tune": [
        ("--steps 0", "`steps` must be at least 1, got 0"),
        ("--labelled 3", "`batch_size` must be at most `labelled`, 3, got 4"),
    ],
    "identity": [
        ("--batch-sizes 1 2", "`batch_sizes` must be at least 2"),
        ("--learning-rate inf", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
        ("--records 0", "`records` must be at least 1, got 0"),
    ],
    "imagenet": [
        (f"{IMAGENET} --configurations BN-x6", "`configurations` must be among"),
        (f"{IMAGENET} --steps 5", "`steps` must be a multiple of `record_every`, 2, "),
        (f"{IMAGENET} --checkpoint-every 3", "`checkpoint_every` must be a multiple"),
        (f"{IMAGENET} --batch-size 12", "`batch_size` must be a multiple of the 8 dev"),
        (f"{IMAGENET} --size 16", "`size` must be at least 32, got 16"),
        (f"{IMAGENET} --width 0", "`width` must be positive"),
    ],
    "inference_statistics": [
        ("--batch-sizes 1 2", "`batch_sizes` must be at least 2, got"),
        ("--momentum 1.5", r"`momentum` must lie in \[0, 1\], got 1.5"),
        ("--population 100", "`population` must be at least 512, got 100"),
        ("--learning-rate 0", "`learning_rate` must be positive and finite"),
        ("--steps 7", "`steps` must be a multiple of `record_every`"),
    ],
    "initialisation": [
        ("--lowest 2 --highest 1", "`lowest` must be below `highest`"),
        ("--scales 1", "`scales` must be at least 2"),
        ("--activations gelu", "`activations` must be among"),
        ("--steps 9", "`steps` must be a multiple"),
    ],
    "learning_rate": [
        ("--lowest 2 --highest 1", "`lowest` must be below `highest`"),
        ("--rates 1", "`rates` must be at least 2"),
        ("--activations gelu", "`activations` must be among"),
        ("--steps 9", "`steps` must be a multiple"),
    ],
    "learning_rate_ladder": [
        ("--steps 0", "`steps`"),
        ("--test-images 0", "`test_images` must be at least 1, got 0"),
        ("--depths 4", r"`depths` must be among \(2, 3, 5, 10\), got \(4,\)"),
        ("--checkpoint-every 150", "`checkpoint_every` must be a multiple"),
        ("--modules 6a", r"`modules` must be among .*, got \('6a',\)"),
        ("--width 0", "`width` must be positive and finite, got 0.0"),
        ("--learning-rate inf", "`learning_rate` must be positive"),
        ("--sgd-momentum 1", r"`sgd_momentum` must lie in \[0, 1\), got 1.0"),
    ],
    "outside_gradient": [
        ("--batch-size 1", "`batch_size` must be at least 2, got 1"),
        ("--learning-rate 0", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
    "padding": [
        ("--shortest 0", "`shortest` must be 1 to 8 rows, got 0"),
        ("--shortest 9", "`shortest` must be 1 to 8 rows, got 9"),
        ("--examples 10", "`examples` must be at least 64, got 10"),
        ("--steps 100", "`steps` must be a multiple of `record_every`"),
    ],
    "placement": [
        ("--activations softsign", "`activations` must be among"),
        ("--activations", "`activations` must be among"),
        ("--residual-steps 7", "`steps` must be a multiple of `record_every`"),
        ("--channels 0", "`channels` must be at least 1, got 0"),
    ],
    "policy_cost": [
        ("--policies none Exact", "`policies` must .* with 'none' and 'Local'"),
        ("--policies none Local Sometimes", "`policies` must be among"),
        ("--rounds 1", "`rounds` must be at least 2"),
        ("--widths", "`widths` must have"),
    ],
    "regularisation": [
        ("--dropout .1", r"`dropout` must be two shares or more in \[0, 1\)"),
        ("--dropout 0 1", r"`dropout` must be two shares or more in \[0, 1\)"),
        ("--l2 0", "`l2` must be positive and finite, got 0.0"),
        ("--examples 10", "`examples` must be at least 32, got 10"),
    ],
    "reinforcement": [
        ("--steps 7", "`steps` must be at least 401, got 7"),
        ("--steps 801", "`steps` must be a multiple of `records`, got 801 and 20"),
        ("--momentum 2", r"`momentum` must lie in \[0, 1\], got 2"),
        ("--rates -1", "`rates` must be positive"),
    ],
    "saturation": [
        ("--activations tanh", "`activations` must be among"),
        ("--learning-rate nan", "`learning_rate` must be positive"),
        ("--hidden 5 0", "`hidden` must be at least 1"),
        ("--records 7", "`steps` must be a multiple"),
    ],
    "scale_invariance": [
        ("--hidden 10", "`hidden` must have two layers or more"),
        ("--learning-rate -1", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
    "small_batches": [
        ("--batch-sizes 1 2", "`batch_sizes` must be at least 2, got"),
        ("--channels 8 12", r"`channels` must be multiples of 8, got \(8, 12\)"),
        ("--weights 2", r"`weights` must lie in \[0, 1\]"),
        ("--rates", "`rates` must be positive"),
    ],
    "sync_policies": [
        ("--usual 3", "`usual` must be one of `examples`"),
        ("--examples 1 --usual 1", "`usual` must be .* at least 2"),
        ("--policies exact stale", "`policies` must contain"),
        ("--policies exact new", "`policies` must be among"),
        ("--tables sorted", "`tables` must contain"),
        ("--network residual", "`tables` .* must be without 'why' and 'drift'"),
        ("--record-every 60", "`record_every` must be more than 64"),
        ("--workers 1", "`workers` must be at least 2"),
    ],
    "whitening": [
        ("--batch-sizes 1", "`batch_sizes` must be at least 2"),
        ("--learning-rate -1", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
}


def parsed(study, options):
    cls = STUDIES[study].load()
    arguments = shlex.split(options)
    return tyro.cli(cls, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


class TestOptions:
    def test_every_study_is_tested(self):
        assert set(OPTIONS) == set(STUDIES)
        assert set(BAD_OPTIONS) == set(STUDIES) - {"sync_cost"}  # It has no options.

    @pytest.mark.first_case
    @pytest.mark.parametrize("study", STUDIES)
    def test_every_option_has_a_help_text(self, study, capsys):
        with pytest.raises(SystemExit) as error:
            main.main([study, "--help"])
        assert error.value.code == 0
        shown = capsys.readouterr().out
        for field in dataclasses.fields(STUDIES[study].load()):
            if field.name != "hp":  # Its fields are options.
                assert f"--{field.name.replace('_', '-')}" in shown

    @pytest.mark.parametrize("study", STUDIES)
    def test_the_command_gives_the_options_back(self, study):
        for options in ("", OPTIONS[study]):
            config = parsed(study, options)
            command = provenance.command(config)
            start = f"python -m experiments {study}"
            assert command.startswith(start)
            made = parsed(study, command.removeprefix(start))
            assert (made, made.identity()) == (config, config.identity())
            assert (command == start) == (not options)

    @pytest.mark.first_case
    @pytest.mark.parametrize(
        ("study", "options", "message"),
        [(study, *case) for study, cases in BAD_OPTIONS.items() for case in cases],
    )
    def test_bad_options(self, study, options, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "setup.cfg").touch()
        with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
            main.main([study, "--data-dir", "data", *shlex.split(options)])

    @pytest.mark.parametrize("study", STUDIES)
    def test_the_small_setting_has_options_of_the_study(self, study):
        cls = STUDIES[study].load()
        small = cls(quick=True).settled()
        for name, value in cls.small.items():
            assert getattr(small, name) == value
        small.check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def run(study, folder, out):
    arguments = ["--data-dir", str(folder / "data"), "--out", str(folder / out)]
    with pytest.MonkeyPatch.context() as patched:
        if study == "imagenet":  # Two of ten modules compile faster.
            modules = {name: inception.FIGURE5[name] for name in ("3a", "3c")}
            patched.setattr(inception, "FIGURE5", modules)
        if study == "crops_and_ensemble":  # Two of seven networks train faster.
            members = {"dropout 5 %": network.Member(dropout=0.05)}
            patched.setattr(network, "MEMBERS", members)
            unchanged = {network.UNCHANGED: network.Member()}
            patched.setattr(network, "NETWORKS", members | unchanged)
        main.main([study, *shlex.split(OPTIONS[study]), *arguments])
    (path,) = (folder / out).glob("*.json")
    return path


def stop(study, folder, out):
    """Runs a study until it has saved a checkpoint, and stops it there."""
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, step, tree):
        save(self, step, tree)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(SystemExit, match="Run the same command again"):
            run(study, folder, out)


@pytest.mark.exhaustive  # Whole programs, which take minutes together.
class TestRuns:
    @pytest.mark.parametrize("study", SHORT)
    def test_a_short_run_that_was_stopped(self, study, folder, capsys):
        if study not in NOT_STOPPED:
            stop(study, folder, study)
            capsys.readouterr()
        path = run(study, folder, study)
        result = json.loads(path.read_text())
        json.dumps(result, allow_nan=False)
        assert result["study"] == study
        assert result["command"].startswith(f"python -m experiments {study} --")
        page = path.with_suffix(".md").read_text()
        assert SHOWN.get(study, "Verdict") in page
        assert page in capsys.readouterr().out
        assert path.with_suffix(".png").exists()
        assert not list(path.parent.glob("checkpoints/*"))
        CHECKS.get(study, lambda result: None)(result)

    # One with records of its own, and one that trains all its seeds at once. A slower
    # test of `figure1` kills the process.
    @pytest.mark.parametrize("study", ["regularisation", "saturation"])
    def test_a_stopped_run_ends_with_the_same_numbers(self, study, folder):
        whole = json.loads(run(study, folder, f"{study} whole").read_text())
        stop(study, folder, f"{study} stopped")
        resumed = json.loads(run(study, folder, f"{study} stopped").read_text())
        for result in (whole, resumed):
            result.pop("cost", None)  # It is a time.
        assert resumed == whole


# The text on the page of a short run, for studies without the word "Verdict".
SHOWN = {
    "accuracy": "| jaxbn",
    "figure1": "| with BN |",
    "imagenet": "| BN-x5 |",
    "identity": "these values recover the input | **holds**",
    "initialisation": "one may be less careful",
    "learning_rate": "BN enables higher learning rates",
    "learning_rate_ladder": "Fewer steps with Batch Normalization",
    "outside_gradient": "the bias of one unit grows at every step | **holds**",
    "saturation": "about half of the ReLUs",
    "scale_invariance": "the identities of one layer | **holds**",
    "whitening": "the covariance is singular | **holds**",
}


def check_covariate_shift(result):
    for found in result["networks"].values():
        assert np.shape(found["shift_cosine"]) == (2, 1, 3)
        first = np.array(found["shift_distance"])[..., 0]
        np.testing.assert_array_equal(first, 0)  # No layer before it.


def check_crops_and_ensemble(result):
    assert (result["test_images"], result["distinct_crops"]) == (40, 48)
    for by_size in result["errors"].values():
        assert np.shape(by_size["1"]) == (1, 2)
    assert np.shape(result["single"]["144"]) == (2,)


def check_imagenet(result):
    assert result["images"] == {"train": 1500, "validation": 297}
    assert len(result["runs"]["BN-x5"]["accuracy"]) == 2


def check_feature_scaling(result):
    steps = {row["scaling"]: row["steps"] for row in result["rows"]}
    assert steps["none"] > steps["min-max"] > steps["z-score"]
    assert steps["BN first"] == steps["z-score"]


def check_inference_statistics(result):
    after = result["sizes"]["4"]["after"]
    ratio = after["algorithm 2"]["ratio"][0][0]
    assert abs(ratio - 1) < 0.1  # 375 batches of four.
    assert abs(after["algorithm 2, biased"]["ratio"][0][0] - 3 / 4 * ratio) < 1e-4


def check_divergence(result):
    accuracy = result["accuracy"]["relu"]
    assert np.shape(accuracy["with_bn"]) == (2, 2)
    assert [row[1] for row in accuracy["without_bn"]] == [None, None]  # Diverged.
    assert None not in [row[0] for row in accuracy["without_bn"]]


def check_learning_rate_ladder(result):
    runs = result["runs"]
    for name, records in (("Inception", 10), ("BN-x5", 2), ("Inception-x5", 1)):
        assert np.shape(runs[name]["accuracy"]) == (records, 2)
    assert runs["BN-x30"]["learning_rate"] == 30 * runs["Inception"]["learning_rate"]
    assert runs["BN-x5"]["loss"] != runs["BN-x30"]["loss"]
    first, second = np.array(runs["BN-x5"]["loss"]).T
    assert np.any(first != second)


def check_outside_gradient(result):
    networks = result["networks"]
    assert np.max(networks["BN"]["bias"]) < 1e-4
    assert np.min(networks["centred outside"]["bias"]) > 1e-3


def check_domains(result):
    found = result["networks"]["all apart"]
    assert np.shape(found["test: as trained: 1"]) == (2, 1)


def check_reinforcement(result):
    returns = {name: found["returns"] for name, found in result["agents"].items()}
    assert {np.shape(found) for found in returns.values()} == {(2, 2)}
    assert np.all(np.array(list(returns.values())) < 0)


def check_small_batches(result):
    for found in result["sizes"].values():
        assert np.shape(found["CBN"]["test"]["running"]) == (1, 1)
        assert set(found["BN"]["test"]) == {"running", "test batch", "example 0.1"}


def check_padding(result):
    change = {name: found["change"][0][0] for name, found in result["networks"].items()}
    assert change["feed-forward, BN over padding"] > 0.01
    for name in ("feed-forward, masked BN", "recurrent, masked BN, shared"):
        assert change[name] < 1e-5  # Rounding.


def check_regularisation(result):
    for name in ("BN", "without BN"):
        mine = [row for row in result["rows"] if row["network"] == name]
        assert [(row["dropout"], row["l2"], row["batches"]) for row in mine] == [
            (0.0, 0.0, "reshuffled"),
            (0.4, 0.0, "reshuffled"),
            (0.0, 0.2, "reshuffled"),
            (0.0, 1.0, "reshuffled"),
            (0.0, 0.0, "fixed"),
        ]
        # Each of those side by side has regularisation of its own.
        assert len({(row["loss"][0], row["accuracy"][0]) for row in mine[:4]}) == 4


def check_saturation(result):
    for run in result["runs"].values():
        np.testing.assert_allclose(np.array(run["gradient"])[..., -1], 1)


def check_scale_invariance(result):
    run = result["runs"]["with_bn_relu"]
    # Larger scales, where epsilon weighs nothing.
    norm, predicted = (
        np.array(run[name])[..., 1:, :] for name in ("norm", "predicted")
    )
    np.testing.assert_allclose(norm, predicted, rtol=1e-3)


def check_sync_policies(result):
    exact = result["parts"]["examples"]["8 x 2"]["exact"]
    assert exact["accuracy"][-1][0] > 0.3
    drift = result["parts"]["drift"]["8 x 2"]["exact"]["drift"][0][0]
    assert drift[0][0] < drift[-1][0]


CHECKS = {
    "covariate_shift": check_covariate_shift,
    "crops_and_ensemble": check_crops_and_ensemble,
    "domains": check_domains,
    "feature_scaling": check_feature_scaling,
    "imagenet": check_imagenet,
    "inference_statistics": check_inference_statistics,
    "initialisation": check_divergence,
    "learning_rate": check_divergence,
    "learning_rate_ladder": check_learning_rate_ladder,
    "outside_gradient": check_outside_gradient,
    "padding": check_padding,
    "regularisation": check_regularisation,
    "reinforcement": check_reinforcement,
    "saturation": check_saturation,
    "scale_invariance": check_scale_invariance,
    "small_batches": check_small_batches,
    "sync_policies": check_sync_policies,
}


class TestPages:
    def test_every_committed_json_is_found(self):
        assert {"accelerators.json", "benchmark.json", "figure1_mnist.json"} <= set(
            NAMES
        )

    @pytest.mark.first_case
    @pytest.mark.parametrize("path", RESULTS, ids=NAMES)
    def test_committed_results_make_the_committed_pages(self, path, tmp_path):
        copy = tmp_path / path.name
        shutil.copy(path, copy)
        pages.write(copy)
        made = {each.name for each in tmp_path.iterdir()}
        committed = {each.name for each in path.parent.glob(f"{path.stem}[._]*")}
        others = {name for other in NAMES if len(other) > len(path.name)
                  for name in committed if name.startswith(other[:-5])}  # fmt: skip
        assert made == committed - others
        page = path.with_suffix(".md")
        assert copy.with_suffix(".md").read_text() == page.read_text()
        for figure in (name for name in made if name.endswith(".png")):
            # Drawn from this JSON, by whatever version of matplotlib.
            source = PIL.Image.open(path.parent / figure).text["Source"]
            assert source == output.digest(path.read_bytes()), figure

    @pytest.mark.first_case
    @pytest.mark.parametrize("path", RESULTS, ids=NAMES)
    def test_every_json_names_what_made_it(self, path):
        result = json.loads(path.read_text())
        assert discovery.find(result["study"])
        assert result["command"].startswith("python -m experiments")
        assert result["device"]
        versions = result.get("versions") or result["rows"][0]
        assert versions["jax"]

    @pytest.mark.first_case
    @pytest.mark.parametrize("path", RESULTS, ids=NAMES)
    def test_the_command_of_every_json_can_be_given_again(self, path):
        _, _, words = json.loads(path.read_text())["command"].partition("experiments ")
        if words:  # The rows of `accelerators` come from its worker.
            name, *options = shlex.split(words)
            command, implied = discovery.find(name)
            if "," not in words:  # Names of policies were not quoted.
                parsed(command.name, shlex.join([*implied, *options]))

    @pytest.mark.parametrize("path", list(pages.readmes(discovery.ROOT)), ids=str)
    def test_readmes_quote_the_committed_results(self, path):
        text = path.read_text()
        assert pages.fill(text, path.parent) == text
        assert text.count("<!-- table ") == text.count("<!-- end -->")

    def test_every_study_has_a_readme_and_a_place_in_the_gallery(self):
        gallery = (discovery.ROOT / "experiments" / "README.md").read_text()
        for name, command in STUDIES.items():
            folder = pathlib.Path(*command.module.split(".")[1:3])
            assert (discovery.ROOT / "experiments" / folder / "README.md").exists()
            assert f"[{name}]({folder.as_posix()}/README.md" in gallery, name
