// The model and its context: what `model.init_context` and `context.act` are in Python, for one environment.

import { draw, probabilities, uniform } from "./sampling.js";

const RUNTIME = new URL("runtime/", import.meta.url);

async function load(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} could not be loaded: ${answer.status}`);
  return answer;
}

/** The model in a folder, as `ad-hf export onnx` writes it: its description and an inference session. */
export async function loadModel(folder) {
  const ort = await import(new URL("ort.wasm.bundle.min.mjs", RUNTIME));
  const packed = await load(new URL("ort.wasm.bin", RUNTIME)); // gzip, whatever the server compresses
  ort.env.wasm.wasmBinary = await new Response(
    packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  ort.env.wasm.numThreads = 1;
  const [description, weights] = await Promise.all([
    load(new URL("model.json", folder)).then((answer) => answer.json()),
    load(new URL("model.onnx", folder)).then((answer) => answer.arrayBuffer()),
  ]);
  const session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  return { ort, description, session };
}

export class Context {
  /** The last steps that a model has seen, across episodes; `seed` is that of the sampled actions. */
  constructor(model, seed = 0) {
    Object.assign(this, model, { seed, counter: 0, sampling: { ...model.description.sampling } });
    this.forget();
  }

  /** Forget everything: the next step is the first of a new history. */
  forget() {
    this.steps = [];
    this.lastAction = this.description.no_action;
    this.first = true;
    this.clear();
  }

  clear() {
    const arrays = { float32: Float32Array, int32: Int32Array };
    this.cache = Object.fromEntries(Object.entries(this.description.cache).map(([name, { type, shape }]) => {
      const sizes = shape.map((size) => (size === "batch" ? 1 : size));
      return [name, new this.ort.Tensor(type, new arrays[type](sizes.reduce((a, b) => a * b)), sizes)];
    }));
  }

  integers(values, shape = [1]) {
    return new this.ort.Tensor("int32", Int32Array.from(values), shape);
  }

  async run(step) {
    const out = await this.session.run({
      observations: this.integers(step.observation, [1, step.observation.length]),
      previous_actions: this.integers([step.action]),
      previous_rewards: new this.ort.Tensor("float32", Float32Array.of(step.reward), [1]),
      episode_starts: this.integers([step.start ? 1 : 0]),
      ...this.cache,
    });
    this.cache = Object.fromEntries(Object.keys(this.cache).map((name) => [name, out[`next_${name}`]]));
    return out.logits.data;
  }

  /**
   * Add a step and choose its action, or take one that somebody else chose.
   *
   * The step has the present observation, the reward that led here and whether an episode starts.
   */
  async act(observation, reward, start, chosen = null) {
    const { context_drop, window } = this.description;
    const step = { observation, action: this.lastAction, reward: this.first ? 0 : reward, start: start || this.first };
    if (context_drop !== null) { // the window does not slide: forget the oldest steps and encode the others anew
      if (this.steps.length === window) {
        this.steps = this.steps.slice(context_drop);
        this.clear();
        for (const old of this.steps) await this.run(old);
      }
      this.steps.push(step);
    }
    this.logits = await this.run(step);
    const number = uniform(this.seed, this.counter++);
    this.lastAction = chosen ?? draw(probabilities(this.logits, this.sampling), number);
    this.first = false;
    return this.lastAction;
  }
}
