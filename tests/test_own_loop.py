"""The page on loops of one's own, run as it stands, in small; and what it says of them."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file
from test_readme import file_of
from transformers import AutoModel, Trainer, TrainerCallback, TrainingArguments

import ad_hf

PAGE = "docs/guides/your_own_loop.md"
FEWER = {"max_steps=1200": "max_steps=4", "eval_steps=400": "eval_steps=2", "save_steps=400": "save_steps=2"}
FEWER |= {"max_steps=300": "max_steps=6", "range(10)": "range(2)", "num_episodes=20": "num_episodes=2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with histories of few tasks, and others of a new task."""
    folder = tmp_path_factory.mktemp("own_loop")
    recipe, family = ad_hf.load_recipe("dark_room"), ad_hf.TaskFamily.from_recipe("dark_room")
    sizes = {"n_envs": 2, "total_timesteps": 1600, "hyperparameters": recipe.source.hyperparameters}
    tasks = [*family.tasks("train")[:3], *family.tasks("validation")[:2]]
    for name, chosen in (("histories", tasks), ("new_histories", family.tasks("train")[-2:])):
        family.all_tasks = chosen
        ad_hf.collect(family, recipe.source.algorithm, output_dir=folder / name, num_workers=0, **sizes)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Run a file of the page with fewer updates; returns its names."""

    def run(name, changes=FEWER):
        text = file_of(PAGE, name)
        for old, new in changes.items():
            text = text.replace(old, new)
        Path(folder, name).write_text(text)
        AcceleratorState._reset_state()  # of what ran before in this process, such as a training in bfloat16
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            return runpy.run_path(name)

    return run


@pytest.fixture(scope="module")
def trained(run):
    """What the page's Trainer leaves."""
    return run("hf_trainer.py")


def batch_of(names):
    return ad_hf.collate_windows([names["windows"][number] for number in range(3)])


def steps_of_all(windows):
    return [window["observations"].tolist() for window in windows]


@torch.no_grad()
def logits(model, batch):
    return model.cpu().eval()(**batch).logits


@pytest.mark.parametrize("name", ["plain_loop", "accelerate"])
def test_a_plain_loop_trains_a_model_that_loads(folder, run, name):
    torch.manual_seed(0)
    names = run("plain_loop.py" if name == "plain_loop" else "accelerate_loop.py")
    model = AutoModel.from_pretrained(folder / "runs" / name)
    batch = batch_of(names)
    own = names["accelerator"].unwrap_model(names["model"]) if name == "accelerate" else names["model"]
    torch.testing.assert_close(logits(model, batch), logits(own, batch))
    torch.manual_seed(0)
    fresh = ad_hf.ADModel(names["config"])  # the weights that the loop began with
    assert model(**batch).loss < fresh(**batch).loss


def test_a_trainer_evaluates_and_keeps_the_model_that_does_best_in_its_context(folder, trained):
    trainer = trained["trainer"]
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert all(np.isfinite([line["eval_loss"], line["eval_return"]]).all() for line in evaluations)
    assert trainer.state.best_metric == max(line["eval_return"] for line in evaluations)
    best = load_file(Path(folder, trainer.state.best_model_checkpoint, "model.safetensors"))
    kept = load_file(folder / "runs" / "trainer" / "model" / "model.safetensors")
    assert all(torch.equal(best[name], values) for name, values in kept.items())
    windows = trainer.eval_dataset
    batch = ad_hf.collate_windows([windows[number] for number in range(len(windows))])
    model = AutoModel.from_pretrained(folder / trainer.state.best_model_checkpoint)
    expected = float(model(**batch).loss.detach())
    of_best = next(line for line in evaluations if line["eval_return"] == trainer.state.best_metric)
    assert of_best["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_trainer_that_is_resumed_ends_as_if_it_had_not_been_stopped(folder, trained, tmp_path):
    """In the middle of the second epoch."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ad_hf.config_from_dataset(folder / "histories", context_length=50, **sizes)
    settings = {"per_device_train_batch_size": 8, "save_steps": 1, "lr_scheduler_type": "constant"}
    settings |= {"report_to": "none", "disable_tqdm": True}
    used = []

    class Seen(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
            used.append(steps_of_all(train_dataloader.dataset))

    def train(name, max_steps, **arguments):
        torch.manual_seed(0)
        windows = ad_hf.HistoryWindowsDataset(folder / "histories", config)
        trainer = Trainer(
            ad_hf.ADModel(config),
            TrainingArguments(str(tmp_path / name), max_steps=max_steps, **settings),
            train_dataset=windows,
            data_collator=ad_hf.collate_windows,
            callbacks=[trained["InContext"](), Seen()],
        )
        trainer.train(**arguments)
        return dict(trainer.model.named_parameters()), -(-len(windows) // 8)

    _, updates = train("stopped", 1)
    train("stopped", updates + 2)
    resumed, _ = train("stopped", 2 * updates, resume_from_checkpoint=True)
    *_, second = used
    whole, _ = train("whole", 2 * updates)
    assert used[-1] == second != used[-2]
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())


def test_adapters_are_trained_saved_loaded_merged_and_act(folder, trained, run):
    names = run("lora.py")
    base = folder / "runs" / "trainer" / "model"
    batch = batch_of(names)
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder / "runs" / "lora" / "adapter")
    merged = AutoModel.from_pretrained(folder / "runs" / "lora" / "model")
    torch.testing.assert_close(logits(merged, batch), logits(again, batch))
    with again.disable_adapter():
        torch.testing.assert_close(logits(again, batch), logits(AutoModel.from_pretrained(base), batch))
    assert merged(**batch).loss < AutoModel.from_pretrained(base)(**batch).loss
    trained_names = {name for name, weight in again.named_parameters() if "lora" in name}
    assert len(trained_names) == 2 * 4 * names["model"].config.num_hidden_layers

    def act(model):
        goals = [{"goal": (0, 8)}, {"goal": (8, 8)}]
        asked = {"env_kwargs": goals, "num_episodes": 2, "seed": 0, "output_steps": True, "output_logits": True}
        return model.rollout("ad_hf/DarkRoom-v0", **asked)

    first, with_adapters = act(merged), act(again)
    assert with_adapters.episode_returns.tolist() == names["out"].episode_returns.tolist()
    assert first.episode_returns.tolist() == with_adapters.episode_returns.tolist()


def test_streamed_rows_train(folder, run):
    names = run("streaming_loop.py", {**FEWER, "USER/dark-room-histories": "histories"})
    count = sum(len(batch["labels"]) for batch in names["loader"])
    windows = ad_hf.HistoryWindowsDataset(folder / "histories", names["config"], keep_every_episode=2).windows
    assert count == len(windows.epoch_windows(1))


def test_the_page_shows_every_public_name():
    text = (Path(__file__).parents[1] / PAGE).read_text()
    for name in ("HistoryWindowsDataset", "IterableHistoryWindowsDataset", "collate_windows"):
        assert re.search(rf"ad_hf\.{name}\b", text)
