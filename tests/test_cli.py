import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import gymnasium as gym
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from ad_hf.cli import app, main
from ad_hf.cli_help import SECTIONS_OF_VERBS
from ad_hf.evaluation.summary import last_of
from ad_hf.recipe import SECTIONS
from ad_hf.settings import descriptions

REPOSITORY = Path(__file__).resolve().parents[1]


def fails(capsys, *arguments):
    """Run a command that must fail with one clear line; returns the line."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    line = printed.strip().splitlines()[-1]
    assert line.startswith("ad-hf: error: ")
    return line


def test_quickstart_goes_from_nothing_to_a_report_and_a_picture(tiny_recipe_file, tmp_path):
    run = tmp_path / "run"
    assert main(["quickstart", "--recipe", str(tiny_recipe_file), "--output_dir", str(run), "--num_workers", "2"]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    for key in ("env_id", "optimal_return", "random_return", "source", "tasks", "versions", "weights_digest"):
        assert evaluation[key] is not None
    assert set(evaluation["seconds"]) == {"collect", "train", "rollout"}
    assert list(evaluation["agents"]) == ["AD", "random", "source"]
    own = evaluation["agents"]["AD"]
    assert (own["num_models"], own["num_rollouts"], own["num_tasks"]) == (1, 3, 2)
    assert len(own["curve"]["mean"]) == 12
    card = ModelCard.load(run / "model" / "README.md")
    assert card.data.eval_results[0].metric_value.startswith(f"{own['at']['12']['return']:.2f} +/- ")
    names = {"evaluation.json", "learning_curve.png", "paths.gif", "replay.gif", "returns.parquet", "rooms.png"}
    assert names < {path.name for path in run.iterdir()}
    assert "keep_every_episode" in card.text
    with Image.open(run / "learning_curve.png") as picture:
        assert picture.width > 600
    assert not any(path.name.startswith(".") for path in run.rglob("*"))


def test_verbs_one_by_one_and_the_module_that_accelerate_launches(tiny_recipe_file, tmp_path):
    histories, run = tmp_path / "histories", tmp_path / "run"
    common = ["--recipe", str(tiny_recipe_file)]
    assert main(["collect", *common, "--output_dir", str(histories), "--source.n_envs", "4"]) == 0
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "ad_hf", "train"]
    command += [*common, "--dataset", str(histories), "--output_dir", str(run), "--training.learning_rate", "3e-4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["learning_rate"] == 3e-4
    arguments = ["--model", str(run / "model"), "--dataset", str(histories), "--output_dir", str(run)]
    assert main(["rollout", *common, *arguments, "--num_seeds", "2", "--rollout.num_episodes", "11"]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["agents"]["AD"]["num_rollouts"] == 2
    assert evaluation["agents"]["AD"]["at"]["11"]["episodes"] == [2, 11]
    assert evaluation["source"]["n_envs"] == 4  # as of the histories, whatever the recipe says
    assert (run / "replay.gif").is_file()
    assert (run / "model" / "replay.gif").is_file()
    assert not (run / "replay.mp4").exists()


def rollout(tiny_recipe_file, tiny_run, output_dir, *options):
    """Roll the tiny model out on the command line; returns the evaluation."""
    arguments = ["--recipe", tiny_recipe_file, "--model", tiny_run / "model", "--output_dir", output_dir, *options]
    assert main(["rollout", *map(str, arguments), "--num_seeds", "1"]) == 0
    return json.loads((output_dir / "evaluation.json").read_text())


def test_rollout_without_histories_reports_on_the_model_alone(tiny_recipe_file, tiny_run, tmp_path, capsys):
    evaluation = rollout(tiny_recipe_file, tiny_run, tmp_path)
    printed = capsys.readouterr().out
    assert (evaluation["source"], evaluation["datasets"], list(evaluation["agents"])) == (None, [], ["AD", "random"])
    pictures = ["learning_curve.png", "paths.gif", "replay.gif"]
    names = ["README.md", "evaluation.json", *pictures, "returns.parquet", "rooms.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "in the first episode: " in printed
    assert "source" not in printed
    assert f"replay: {tmp_path / 'replay.gif'}" in printed


def test_rollout_with_histories_compares_with_their_source(
    tiny_recipe_file, tiny_run, tiny_histories, tmp_path, capsys
):
    options = ["--dataset", tiny_histories, "--source.algorithm", "PPO", "--rollout.do_sample", "false"]
    evaluation = rollout(tiny_recipe_file, tiny_run, tmp_path, *options)
    assert all(task["returns"]["AD"].is_integer() for task in evaluation["tasks"])  # the likeliest actions repeat
    assert evaluation["source"]["algorithm"] == "A2C"  # which is true of the histories
    assert evaluation["datasets"][0]["seeds"] == [0]
    source = last_of(evaluation["agents"]["source"])["return"]
    assert f"the source's final return: {source:.2f}" in capsys.readouterr().out


def test_an_mp4_is_written_beside_the_gif_if_asked_and_goes_with_the_next_rollout(
    tiny_recipe_file, tiny_run, tmp_path, capsys
):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    rollout(tiny_recipe_file, run, run, "--video", "mp4")
    assert f"video: {run / 'replay.mp4'}" in capsys.readouterr().out
    with Image.open(run / "replay.gif") as gif, av.open(run / "replay.mp4") as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == gif.size
        assert stream.frames == 6 + 10  # an episode of 6 steps, and its end for a second
    assert (run / "model" / "replay.mp4").is_file()
    rollout(tiny_recipe_file, run, run, "--no_video")
    assert not list(run.rglob("replay.*"))
    assert "replay.gif" not in (run / "model" / "README.md").read_text()


WITHOUT_AV = """
import sys

sys.modules["av"] = None  # as if it were not installed
from ad_hf.cli import app, main

sys.exit(main(sys.argv[1:]))
"""


def test_a_missing_encoder_is_told_before_anything_is_done(tiny_recipe_file, tmp_path):
    arguments = ["rollout", "--recipe", tiny_recipe_file, "--model", "no/model", "--output_dir", tmp_path / "run"]
    command = [sys.executable, "-c", WITHOUT_AV, *map(str, arguments), "--video", "mp4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('ad-hf: error: MP4 files need the package av: pip install "ad_hf[video]"')
    assert not (tmp_path / "run").exists()


def commands(of=app, words=()):
    """Every command, as words, from the command line itself to the last sub-command."""
    yield words
    for name in of:
        if not name.startswith("-"):
            yield from commands(of[name], (*words, name))


def test_every_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in commands():
        assert main([*words, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("Usage: ad-hf")
        assert len(lines) <= 40, words
        assert max(map(len, lines)) <= 100, words
        assert any("--help all" in line for line in lines) == (" ".join(words) in SECTIONS_OF_VERBS), words


@pytest.mark.parametrize("verb", SECTIONS_OF_VERBS)
def test_help_all_lists_the_settings_that_a_verb_reads_in_a_whole_sentence_each(capsys, verb):
    assert main([verb, "--help", "all"]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 100
    words = " ".join(listed.split())
    for section, declared in SECTIONS.items():
        texts = descriptions(declared)
        for each in dataclasses.fields(declared):
            sentence = texts[each.name].split(". ")[0].rstrip(".")
            assert (f"--{section}.{each.name} {sentence}" in words) == (section in SECTIONS_OF_VERBS[verb])
    first = SECTIONS_OF_VERBS[verb][0]
    assert main([verb, "--help", first]) == 0
    whole = max(descriptions(SECTIONS[first]).values(), key=len)  # of several sentences
    assert whole.rstrip(".") in " ".join(capsys.readouterr().out.split())


def test_nothing_that_was_computed_is_lost(tiny_recipe_file, tiny_run, tiny_histories, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train = ["train", "--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", run]
    quickstart = ["quickstart", "--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", run]
    other = ["--training.learning_rate", "1e-3"]
    for words in (
        train,
        [*train, *other],
        [*quickstart, *other],
        [*train, *other, "--resume", tiny_run / "checkpoint-10"],
    ):
        assert "checkpoint-10/: go on with it by --resume latest, give another" in fails(capsys, *words)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*map(str, train), "--resume", "latest"]) == 0
    assert main(list(map(str, quickstart))) == 0  # of the same recipe, again
    assert (run / "model" / "model.safetensors").read_bytes() == before[run / "model" / "model.safetensors"]
    (run / "checkpoint-99").mkdir()  # of a longer run
    (run / "checkpoint-99" / "training_state.json").touch()
    assert main([*map(str, train), *other, "--overwrite"]) == 0
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-10"]
    assert (run / "model" / "model.safetensors").read_bytes() != before[run / "model" / "model.safetensors"]


def test_trainings_of_the_same_seeds_are_told_apart_by_name(
    tiny_recipe_file, tiny_run, tiny_histories, tmp_path, monkeypatch
):
    shutil.copytree(tiny_run, tmp_path / "fast")
    monkeypatch.chdir(tmp_path)
    train = ["train", "--recipe", str(tiny_recipe_file), "--dataset", str(tiny_histories), "--output_dir", "slow"]
    assert main([*train, "--training.learning_rate", "1e-4"]) == 0
    assert main(["evaluate", "--model", "fast", "slow", "--output_dir", "seen", "--num_seeds", "1"]) == 0
    found = json.loads(Path("seen/evaluation.json").read_text())
    assert set(found["agents"]) == {"AD (fast)", "AD (slow)", "random"}
    assert [each["agent"] for each in found["models"]] == ["AD (fast)", "AD (slow)"]
    assert [found["agents"][each["agent"]]["num_models"] for each in found["models"]] == [1, 1]
    assert "\n| AD (slow) (this model) | " in Path("slow/model/README.md").read_text()


def test_evaluate_compares_trainings_with_their_source_by_the_recipes_of_their_runs(
    tiny_recipe_file, tiny_run, tiny_histories, tmp_path, capsys
):
    tiny_run = shutil.copytree(tiny_run, tmp_path / "tiny")
    other = tmp_path / "other"
    train = ["train", "--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", other]
    assert main([str(argument) for argument in [*train, "--training.seed", "1"]]) == 0
    arguments = ["--model", tiny_run, other / "model", "--dataset", tiny_histories, "--output_dir", tmp_path / "seen"]
    arguments += ["--num_seeds", "2", "--rollout.num_episodes", "13"]

    assert main(["evaluate", *map(str, arguments)]) == 0

    found = json.loads((tmp_path / "seen" / "evaluation.json").read_text())
    assert list(found["agents"]) == ["AD", "random", "source"]
    ad = found["agents"]["AD"]
    assert (ad["num_models"], ad["num_rollouts"], ad["num_tasks"]) == (2, 2, 2)
    assert list(ad["at"]) == ["1", "10", "13"]
    assert "return of 2 trainings on 2 held-out tasks, episodes 4 to 13: " in capsys.readouterr().out
    for run in (tiny_run, other):
        card = ModelCard.load(run / "model" / "README.md")
        assert "On 2 held-out tasks, in 2 rollouts of each of 2 trainings, of which this model is one" in card.text
        assert (run / "returns.parquet").read_bytes() == (tmp_path / "seen" / "returns.parquet").read_bytes()
        last = ad["at"]["13"]
        assert f"| AD (this model) | {ad['at']['1']['return']:.2f} | {last['return']:.2f} (" in card.text
        assert card.data.eval_results[0].dataset_args["trainings"] == 2
        assert card.data.eval_results[0].metric_value.startswith(f"{last['return']:.2f} +/- ")


REFUSED = [
    ("rollout --model m --output_dir o --num_seeds 0", "--num_seeds.*>= 1"),
    ("rollout --model m --output_dir o --num_seeds -1", "--num_seeds.*>= 1"),
    ("evaluate --model m --output_dir o --num_seeds 1e3", '--num_seeds: unable to convert "1e3" into int'),
    ("quickstart --num_seeds 1000000000000", "--num_seeds.*<= 10000"),
    ("collect --num_workers " + "9" * 5000, "--num_workers"),
    ("train --dataset d --output_dir o --push_every 0", "--push_every.*>= 1"),
    ("convert from-minari m o --episodes_per_history 0", "--episodes_per_history.*>= 1"),
    ("convert from-arrays s o --num_test_tasks -1", "--num_test_tasks.*>= 0"),
    ("convert from-arrays s o --action_space " + "[" * 10**5, "--action_space.*nests too deep"),
    ("convert from-arrays s o --env_kwargs {", "--env_kwargs.*'{' is not JSON"),
    ("train --dataset= --output_dir o", "--dataset.*got empty text"),
    ("train --dataset d --output_dir o --recipe=", "--recipe.*got empty text"),
    ("train --output_dir o", "--dataset"),
    ("collect --executor slurm", "slurm.*--executor.*ray"),
    ("evaluat", "evaluat.*Did you mean.*evaluate"),
    ("push model folder repo --config_name default", "unknown options: --config_name default"),
    ("recipes --training.max_steps 3", "(?i)unknown option.*--training.max_steps"),
    ("merge one two", "two datasets or more, and then the folder"),
    ("collect --recipe dark_rom --output_dir OUT", "did you mean dark_room or dark_room_hard"),
    ("collect --output_dir OUT", "--recipe says what to collect.*ad-hf recipes.*ad-hf init"),
    ("collect --recipe dark_room --outptu_dir OUT", "--outptu_dir .did you mean --output_dir"),
    ("train --recipe RECIPE --dataset HISTORIES --output_dir OUT --trainin.seed 1", "did you mean training"),
    (
        "train --dataset HISTORIES --output_dir OUT --training.learning_rte 1",
        "--training.learning_rte .did you mean learning_rate",
    ),
    ("train --dataset HISTORIES --output_dir OUT --training.max_steps many", "training.max_steps"),
    ("collect --recipe dark_room --output_dir OUT --source.algorithm A3C", "'A3C'.*A2C|A2C.*'A3C'"),
    ("collect --recipe dark_room --output_dir OUT --source.hyperparameters.gama 0.9", "'gama'"),
    ("train --dataset MISSING --output_dir OUT", "/missing"),
    ("rollout --model MISSING --dataset MISSING --output_dir OUT --recipe RECIPE", "/missing"),
    ("train --recipe dark_room --dataset HISTORIES --output_dir OUT", "size"),
    ("rollout --recipe dark_room --model MODEL --output_dir OUT", "observation_space"),
    (
        "train --recipe RECIPE --dataset HISTORIES --output_dir OUT --model.hidden_size 18",
        "num_attention_heads",
    ),
    (
        "evaluate --output_dir OUT --model RUN RUN RUN --dataset HISTORIES HISTORIES",
        "2 for 3 models: give one for all, or one for each",
    ),
    ("evaluate --output_dir OUT --model BARE", "comes without the recipe of its run: give one with --recipe"),
    (
        "evaluate --model RUN MODEL --output_dir OUT",
        "are the same training: both are AD with family.split_seed 0, training.seed 0 and the same weights",
    ),
]


def test_wrong_arguments_are_named(capsys, tiny_recipe_file, tiny_run, tiny_histories, tmp_path):
    bare = shutil.copytree(tiny_run / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("recipe.yaml"))
    paths = {"OUT": tmp_path / "out", "MISSING": tmp_path / "missing", "BARE": bare, "RECIPE": tiny_recipe_file}
    paths |= {"HISTORIES": tiny_histories, "RUN": tiny_run, "MODEL": tiny_run / "model"}
    for line, message in REFUSED:
        error = fails(capsys, *(paths.get(word, word) for word in line.split()))
        assert re.search(message, error), (line[:80], error[-200:])


def documented_commands():
    """Every whole `ad-hf` command of the README, the documentation and the card templates, as words."""
    for pattern in ("*.md", "docs/**/*.md", "dataset_cards/*.md", "model_cards/*.md"):
        for path in sorted(REPOSITORY.glob(pattern)):
            text = path.read_text().replace("\\\n", " ")
            lines = re.findall(r"^(ad-hf [a-z].*)$", text, re.MULTILINE)
            lines += [line for line in re.findall(r"`(ad-hf [a-z][^`]*)`", text) if len(line.split()) > 4]
            yield from (
                shlex.split(line.partition(" > ")[0], comments=True)[1:]
                for line in lines
                if not re.search(r"\.\.\.|{{| \| ", line)
            )


def test_the_last_of_an_option_that_is_given_twice_counts():
    words = ["train", "--dataset", "a", "--output_dir", "o", "--output_dir", "p"]
    assert app.parse_known_args(words)[1].arguments["output_dir"] == "p"


def test_a_mixture_takes_several_datasets():
    for words in (["--dataset", "a", "b"], ["--dataset", "a", "--dataset", "b"]):
        assert app.parse_known_args(["train", *words, "--output_dir", "o"])[1].arguments["dataset"] == ["a", "b"]


def test_every_command_of_the_documentation_parses():
    commands = list(documented_commands())
    assert len(commands) > 25
    for words in commands:
        unknown = app.parse_known_args(words)[2]
        assert not unknown or re.match(r"--(family|source|data|model|training|rollout)\.", unknown[0]), words


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("two\n  lines"), "ad-hf: error: two lines"),
        (FileNotFoundError("none"), "ad-hf: error: none"),
        (ValueError("\x1b[31mred\u202e"), r"ad-hf: error: \x1b[31mred\u202e"),
        (KeyError("algorithm"), "ad-hf: error: KeyError: 'algorithm' (--debug shows where)"),
        (MemoryError(), "ad-hf: error: MemoryError:  (--debug shows where)"),
        (RecursionError("too deep"), "ad-hf: error: RecursionError: too deep (--debug shows where)"),
        (gym.error.NameNotFound("no Env"), "ad-hf: error: NameNotFound: no Env (--debug shows where)"),
        (BrokenPipeError(32, "Broken pipe"), "ad-hf: error: [Errno 32] Broken pipe"),  # not that of the output
    ],
)
def test_any_error_is_one_line_and_debug_shows_its_traceback(error, told, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("ad_hf.cli.run", fail)
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == f"{told}\n"
    with pytest.raises(type(error)):
        main(["recipes", "--debug"])


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -c 'import sys; from ad_hf.cli import app, main; sys.exit(main([\"recipes\"]))'"
    done = subprocess.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
