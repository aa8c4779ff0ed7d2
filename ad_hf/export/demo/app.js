// The page: who plays, how fast, and what is shown of it.

import { Context, loadModel } from "./agent.js";
import { DarkRoom } from "./dark_room.js";
import { Chart, RoomView, wayPicture } from "./drawing.js";

const SPEEDS = [2, 5, 10, 20, 50, 100, Infinity]; // steps per second
const SHOWN = [1, 2, 3, 5, 10, 20, 30, 50, 100]; // episodes whose ways stay on the page
const KEYS = { ArrowLeft: 0, ArrowRight: 1, ArrowUp: 2, ArrowDown: 3, " ": 4 };
const SLICE = 12; // milliseconds of computation between two pictures
const still = matchMedia("(prefers-reduced-motion: reduce)");
const options = new URLSearchParams(location.search);
const part = (name) => document.getElementById(name);
const say = (text) => { part("message").textContent = text; };
const percent = (share) => `${Math.round(100 * share)}%`;
const state = { playing: false, you: false, busy: false, pending: null };
let model, context, world, room, chart, unseen;

const isUnseen = (goal) => unseen.some((each) => String(each) === String(goal));
const words = (goal) => `${world.distance(goal)} steps away, in column ${goal[0] + 1} and row ${world.size - goal[1]}`;

/** Take a step: the player's, or else the model's. */
async function step(chosen = null) {
  const action = await context.act(world.position, state.reward, world.time === 0, chosen);
  state.reward = world.step(action);
  if (chosen !== null) state.player = "you";
  if (world.done) endEpisode();
}

function endEpisode() {
  const { path, goal, total, optimum } = world;
  const episode = { number: chart.episodes.length + 1, path, goal, total, optimum, player: state.player, event: state.pending };
  chart.episodes.push(episode);
  state.pending = null;
  state.player = "model";
  world.reset();
  const who = episode.player === "you" ? "Your episode" : "Episode";
  say(`${who} ${episode.number}: return ${total} of ${optimum}.`);
  if (SHOWN.includes(episode.number) || episode.event || episode.player === "you") {
    part("ways").append(wayPicture(world.size, episode));
  }
  chart.draw();
}

function draw() {
  room.draw(world, state.you ? "you" : "model");
  part("episode").textContent = chart.episodes.length + 1;
  part("step").textContent = `${world.time} / ${world.steps}`;
  part("return").textContent = world.total;
  part("best").textContent = world.optimum;
}

const nextPicture = () => new Promise((resolve) => { requestAnimationFrame(resolve); });
const speed = () => SPEEDS[part("speed").value];

/** Let the model play until somebody presses Pause. */
async function play() {
  let due = performance.now(), [counted, since] = [0, due];
  while (state.playing) {
    const now = await nextPicture();
    due = Math.max(due, now - 250); // after a pause of the tab, go on from here
    const wholeEpisode = still.matches && speed() < Infinity;
    if (now < due) continue;
    const until = performance.now() + SLICE;
    state.busy = true;
    do {
      await step();
      counted += 1;
      due += 1000 / speed();
      if (wholeEpisode ? world.time === 0 : due > now || performance.now() > until) break;
    } while (state.playing);
    state.busy = false;
    if (speed() === Infinity) due = now;
    draw();
    if (now - since > 1000) {
      part("pace").textContent = `${Math.round(1000 * counted / (now - since))} steps per second.`;
      [counted, since] = [0, now];
    }
  }
}

function setPlaying(playing) {
  if (playing && state.you) setYou(false);
  const begins = playing && !state.playing;
  state.playing = playing;
  part("play").textContent = playing ? "Pause" : chart.episodes.length || world.time ? "Continue" : "Play";
  if (begins) play().catch(fail);
}

function setYou(you) {
  if (you) setPlaying(false);
  state.you = you;
  part("you").setAttribute("aria-pressed", you);
  part("pad").hidden = !you;
  if (you) part("pad").focus(); // the space bar is a move now, and presses no button
  draw();
}

/** The player's own step; the model sees it as its history. */
async function yourStep(action) {
  if (!state.you || state.busy) return;
  state.busy = true;
  await step(action);
  state.busy = false;
  draw();
}

function setGoal(goal) {
  const moves = chart.episodes.length > 0 || world.time > 0;
  world.goal = goal;
  chart.most = world.optimum;
  part("goal").value = String(goal);
  if (moves) state.pending = "move";
  const seen = isUnseen(goal) ? "The model never trained on this goal" : "The model saw this goal in training";
  say(`${seen}: ${words(goal)}, at best a return of ${world.optimum}.${moves ? " It has to learn anew." : ""}`);
  chart.draw();
  draw();
}

/** Let the context begin anew, with an episode of its own; the chart goes on. */
async function forget() {
  while (state.busy) await nextPicture();
  context.forget();
  world.reset();
  state.reward = 0;
  state.player = "model";
  if (chart.episodes.length) state.pending = "forget";
  say("It has forgotten everything: the next episode is the first of a new history.");
  draw();
}

function fillGoals(tasks) {
  const group = (label, goals) => {
    const parts = [...goals].sort((a, b) => world.distance(a) - world.distance(b)).map((goal) => new Option(words(goal), String(goal)));
    const element = document.createElement("optgroup");
    element.label = label;
    element.append(...parts);
    return element;
  };
  const goals = (split) => tasks[split].map((task) => task.goal);
  part("goal").append(group("Never seen by the model", goals("test")),
    group("Used to choose the model", goals("validation")), group("Seen in training", goals("train")));
}

function listen() {
  part("play").addEventListener("click", () => setPlaying(!state.playing));
  part("you").addEventListener("click", () => setYou(!state.you));
  part("forget").addEventListener("click", forget);
  part("move").addEventListener("click", () => {
    const others = unseen.filter((goal) => String(goal) !== String(world.goal));
    setGoal(others[Math.floor(Math.random() * others.length)]);
  });
  part("goal").addEventListener("change", (event) => setGoal(event.target.value.split(",").map(Number)));
  part("speed").addEventListener("input", () => {
    part("speed-value").textContent = speed() === Infinity ? "as fast as it goes" : `${speed()} steps a second`;
  });
  part("temperature").addEventListener("input", (event) => {
    context.sampling.temperature = Number(event.target.value);
    part("temperature-value").textContent = event.target.value;
  });
  for (const button of part("pad").querySelectorAll("button")) {
    button.addEventListener("click", () => yourStep(Number(button.dataset.action)));
  }
  document.addEventListener("keydown", (event) => {
    const inControl = event.target.closest("input, select");
    if (!state.you || !(event.key in KEYS) || inControl || (event.key === " " && event.target.closest("button"))) return;
    event.preventDefault();
    yourStep(KEYS[event.key]);
  });
}

function describe({ parameters, family, source, model: own, dataset }) {
  part("size").textContent = `, ${Math.round(parameters / 1000)} thousand of them,`;
  const { train, test } = family.tasks;
  const about = [`It was trained on the histories of a learner in ${train.length} other goals; ${test.length} were held out.`];
  if (source) {
    const { n_envs, algorithm, env_steps, mean } = source;
    const most = Math.max(...mean), level = env_steps[mean.findIndex((value) => value >= 0.9 * most)];
    about.push(`The teacher's curve is the mean of ${algorithm} on ${source.num_tasks} held-out goals. It learns in ` +
      `${n_envs} rooms at once, all of whose steps count, and takes ${level.toLocaleString("en")} steps to ${percent(0.9)} of ` +
      `its final return; 30 episodes of the model are ${30 * world.steps}.`);
  }
  part("about").textContent = about.join(" ");
  for (const [kind, place, path] of [["model", own, ""], ["histories", dataset, "datasets/"]]) {
    if (!place) continue;
    const link = document.createElement("a");
    link.href = `https://huggingface.co/${path}${place.name}`;
    link.textContent = `The ${kind} on the Hub`;
    part("about").append(" ", link, ".");
  }
}

function fail(error) {
  console.error(error);
  state.playing = state.busy = false;
  part("loading").hidden = false;
  part("loading").textContent = `This page could not run the model: ${error.message}`;
}

async function start() {
  model = await loadModel(new URL("model/", import.meta.url));
  const { family, sampling, source } = model.description;
  unseen = family.tasks.test.map((task) => task.goal);
  const seed = Number(options.get("seed") ?? Math.floor(Math.random() * 2 ** 31));
  context = new Context(model, seed);
  world = new DarkRoom(family.env_kwargs, unseen[0]);
  state.reward = 0;
  state.player = "model";
  chart = new Chart(part("chart"), source, world.steps);
  room = new RoomView(part("room"), world.size, unseen, setGoal);
  fillGoals(family.tasks);
  describe(model.description);
  listen();
  part("temperature").value = sampling.temperature;
  part("speed").dispatchEvent(new Event("input"));
  part("temperature").dispatchEvent(new Event("input"));
  const asked = options.get("goal")?.split(",").map(Number);
  setGoal(asked ?? unseen[Math.floor(Math.random() * unseen.length)]);
  for (const name of ["play", "move", "forget", "you", "goal"]) part(name).disabled = false;
  part("loading").hidden = true;
}

start().catch(fail);
