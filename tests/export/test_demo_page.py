"""The page in a browser: the actions of Python, and a model that learns goals that it has never seen."""

import json
import shutil
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ad_hf.envs.dark_room import DarkRoomVectorEnv
from ad_hf.export.page import _QuietHandler, build_demo
from ad_hf.model.heads_ad import action_probabilities, draw, uniform
from ad_hf.model.rollout_config_ad import RolloutConfig

COMMITTED = Path(__file__).parents[2] / "docs" / "demo"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def address(page_runtime, tmp_path_factory):
    """Address of the page of the model that lies in the repository."""
    folder = build_demo(COMMITTED, tmp_path_factory.mktemp("demo") / "page")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 6e6
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """Somebody on the page."""

    def __init__(self, browser, address, seed, goal):
        self.page, self.errors = browser.new_page(), []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}?seed={seed}&goal={goal[0]},{goal[1]}")
        self.page.wait_for_selector("#play:enabled", timeout=60_000)
        self.page.fill("#speed", "6")

    def returns(self):
        label = self.page.get_attribute("#chart", "aria-label")
        return [int(number) for number in label.partition(":")[2].split(",") if number.strip().isdigit()]

    def play(self, episodes):
        before = len(self.returns())
        self.page.click("#play")
        self.page.wait_for_function(
            "most => Number(document.getElementById('episode').textContent) > most",
            arg=before + episodes,
            timeout=120_000,
        )
        self.page.click("#play")
        return self.returns()[before : before + episodes]


def test_the_page_acts_as_python_does_for_the_same_seed(address, browser):
    page = browser.new_page()
    page.goto(address)
    seen = page.evaluate(
        """async () => {
            const { Context, loadModel } = await import("./agent.js");
            const { DarkRoom } = await import("./dark_room.js");
            const model = await loadModel(new URL("model/", location.href));
            const context = new Context(model, 11), world = new DarkRoom(model.description.family.env_kwargs, [7, 6]);
            const actions = [], rewards = [];
            for (let step = 0; step < 200; step++) {
                const action = await context.act(world.position, rewards.at(-1) ?? 0, world.time === 0);
                actions.push(action);
                rewards.push(world.step(action));
                if (world.done) world.reset();
            }
            return { actions, rewards };
        }"""
    )
    description = json.loads((COMMITTED / "model.json").read_text())
    session = onnxruntime.InferenceSession(COMMITTED / "model.onnx")
    cache = {
        name: np.zeros([1 if size == "batch" else size for size in each["shape"]], each["type"])
        for name, each in description["cache"].items()
    }
    config = RolloutConfig(**description["sampling"]).resolve()
    envs = DarkRoomVectorEnv(1, goal=[(7, 6)], **description["family"]["env_kwargs"])
    observations, _ = envs.reset()
    action, reward, start = description["no_action"], 0.0, True
    actions, rewards = [], []
    for step in range(200):
        given = {"observations": observations.astype(np.int32), "previous_actions": np.array([action], np.int32)}
        given |= {"previous_rewards": np.array([reward], np.float32), "episode_starts": np.array([start], np.int32)}
        logits, *after = session.run(description["outputs"], {**given, **cache})
        cache = dict(zip(cache, after))
        numbers = uniform(np.array([11], np.uint64), np.array([step], np.uint64), 1)
        action = int(draw(action_probabilities(torch.from_numpy(logits), config, True), numbers[:, 0]))
        observations, (reward,), _, (ended,), _ = envs.step(np.array([action]))
        start = bool(ended)
        actions.append(action)
        rewards.append(float(reward))
    assert seen == {"actions": actions, "rewards": rewards}
    assert sum(rewards) > 20
    assert len(set(actions)) == 5


@pytest.mark.parametrize("goal", [(4, 7), (0, 5), (1, 0)], ids=["3 away", "5 away", "7 away"])
def test_visitors_see_the_model_learn_a_goal_it_never_trained_on(address, browser, goal):
    held_out = [task["goal"] for task in json.loads((COMMITTED / "model.json").read_text())["family"]["tasks"]["test"]]
    assert list(goal) in held_out
    visitors = [Visitor(browser, address, seed, goal) for seed in range(3)]  # a far goal may take one more episodes
    returns = np.array([visitor.play(30) for visitor in visitors])
    assert returns[:, 20:].mean() > 2 * max(returns[:, 0].mean(), 1)
    assert [visitor.errors for visitor in visitors] == [[], [], []]


def test_a_visitor_moves_the_goal_plays_and_lets_the_model_forget(address, browser):
    visitor = Visitor(browser, address, 0, (4, 7))
    page = visitor.page
    learnt = np.mean(visitor.play(15)[10:])
    page.click("#move")
    assert "It has to learn anew" in page.text_content("#message")
    assert page.input_value("#goal") != "4,7"
    page.select_option("#goal", "1,0")
    assert np.mean(visitor.play(3)[1:]) < learnt / 2  # the goal moved within the first of these
    page.select_option("#goal", "4,7")
    page.click("#forget")
    page.click("#you")
    for _ in range(3):  # a visitor who knows the way
        for key in ["ArrowUp"] * 3 + [" "] * 17:
            before = page.text_content("#step"), page.text_content("#episode")
            page.keyboard.press(key)
            page.wait_for_function(
                "([step, episode]) => document.getElementById('step').textContent !== step"
                " || document.getElementById('episode').textContent !== episode",
                arg=list(before),
            )
    assert visitor.returns()[-3:] == [18, 18, 18]
    page.click("#you")
    assert np.mean(visitor.play(5)) > 9  # from the visitor's own history
    page.click("#forget")
    assert "It has forgotten everything" in page.text_content("#message")
    assert visitor.errors == []
