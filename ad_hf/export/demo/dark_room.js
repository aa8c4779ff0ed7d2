// Dark Room, as ad_hf/envs/dark_room.py has it: the agent sees its own cell and never the goal.

// Left, right, up, down, stay, as changes of (x, y); y grows upwards.
const MOVES = [[-1, 0], [1, 0], [0, 1], [0, -1], [0, 0]];

export class DarkRoom {
  constructor({ size = 9, max_episode_steps = 20, sparse_reward = false }, goal) {
    Object.assign(this, { size, steps: max_episode_steps, sparse: sparse_reward, goal });
    this.reset();
  }

  get centre() {
    return Math.floor(this.size / 2);
  }

  /** Steps from the start to a cell. */
  distance([x, y]) {
    return Math.abs(x - this.centre) + Math.abs(y - this.centre);
  }

  /** The return of an episode that walks straight to the goal and stays there. */
  get optimum() {
    const paid = Math.max(0, this.steps - Math.max(1, this.distance(this.goal)) + 1);
    return this.sparse ? Math.min(1, paid) : paid;
  }

  /** Start an episode; returns the observation. */
  reset() {
    this.time = 0;
    this.total = 0;
    this.path = [[this.centre, this.centre]];
    return this.position;
  }

  get position() {
    return this.path.at(-1);
  }

  /** Walk a step; returns its reward. */
  step(action) {
    const position = this.position.map((at, axis) =>
      Math.min(this.size - 1, Math.max(0, at + MOVES[action][axis])));
    const onGoal = position.every((at, axis) => at === this.goal[axis]);
    const reward = onGoal && !(this.sparse && this.total) ? 1 : 0;
    this.path.push(position);
    this.time += 1;
    this.total += reward;
    return reward;
  }

  get done() {
    return this.time >= this.steps;
  }
}
