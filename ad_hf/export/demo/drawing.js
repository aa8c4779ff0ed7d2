// The room, the ways that were walked in it, and the chart, as SVG.

const NAMESPACE = "http://www.w3.org/2000/svg";

/** An element of SVG with attributes and children. */
export function shape(name, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const same = (one, other) => one[0] === other[0] && one[1] === other[1];

export class RoomView {
  /** A square room of cells; `unseen` are goals that the model never trained on, `onPick` is called with a cell. */
  constructor(svg, size, unseen, onPick) {
    Object.assign(this, { svg, size });
    svg.setAttribute("viewBox", `0 0 ${size} ${size}`);
    this.cells = new Map();
    const floor = shape("g");
    for (let x = 0; x < size; x++) for (let y = 0; y < size; y++) {
      const cell = shape("g", { class: "cell", transform: `translate(${x} ${size - 1 - y})` },
        shape("rect", { x: 0.04, y: 0.04, width: 0.92, height: 0.92, rx: 0.14 }));
      if (unseen.some((goal) => same(goal, [x, y]))) {
        cell.classList.add("unseen");
        cell.append(shape("circle", { class: "ring", cx: 0.5, cy: 0.5, r: 0.13 }));
      }
      cell.addEventListener("click", () => onPick([x, y]));
      this.cells.set(`${x},${y}`, cell);
      floor.append(cell);
    }
    this.goal = shape("g", { class: "goal" }, shape("rect", { x: 0.04, y: 0.04, width: 0.92, height: 0.92, rx: 0.14 }),
      shape("path", { d: star(0.5, 0.5, 0.3, 0.135) }));
    this.trail = shape("polyline", { class: "trail" });
    this.agent = shape("circle", { class: "agent", r: 0.27 });
    svg.replaceChildren(floor, this.goal, this.trail, this.agent);
  }

  centre([x, y]) {
    return [x + 0.5, this.size - y - 0.5];
  }

  draw(world, player) {
    const [x, y] = world.goal;
    this.goal.setAttribute("transform", `translate(${x} ${this.size - 1 - y})`);
    const visited = new Set(world.path.map(String));
    for (const [name, cell] of this.cells) cell.classList.toggle("visited", visited.has(name));
    this.trail.setAttribute("points", world.path.map((cell) => this.centre(cell).join()).join(" "));
    const [left, top] = this.centre(world.position);
    this.agent.setAttribute("cx", left);
    this.agent.setAttribute("cy", top);
    this.svg.classList.toggle("paid", same(world.position, world.goal));
    this.svg.classList.toggle("yours", player === "you");
  }
}

function star(x, y, outer, inner) {
  const points = Array.from({ length: 10 }, (_, index) => {
    const angle = Math.PI * (index / 5 - 0.5), radius = index % 2 ? inner : outer;
    return `${(x + radius * Math.cos(angle)).toFixed(3)} ${(y + radius * Math.sin(angle)).toFixed(3)}`;
  });
  return `M${points.join("L")}Z`;
}

/** A small picture of the way of an episode. */
export function wayPicture(size, { number, path, goal, total, player }) {
  const at = ([x, y]) => [x + 0.5, size - y - 0.5];
  const [left, top] = at(goal), [endLeft, endTop] = at(path.at(-1));
  const picture = shape("svg", { viewBox: `0 0 ${size} ${size}`, class: player, role: "img",
    "aria-label": `Episode ${number}: return ${total}` },
  shape("rect", { class: "floor", width: size, height: size, rx: 0.8 }),
  shape("path", { class: "star", d: star(left, top, 0.85, 0.38) }),
  shape("polyline", { class: "trail", points: path.map((cell) => at(cell).join()).join(" ") }),
  shape("circle", { class: "agent", cx: endLeft, cy: endTop, r: 0.42 }));
  const item = document.createElement("li");
  const caption = document.createElement("span");
  caption.textContent = `${number}`;
  const earned = document.createElement("b");
  earned.textContent = `${total}`;
  item.append(picture, caption, earned);
  return item;
}

const MARGIN = { left: 34, right: 12, top: 14, bottom: 46 };
const EVENTS = { forget: "forgot", move: "goal moved" };

/** Values at some steps of a curve of values at others, constant beyond its ends. */
export function interpolate(steps, values, step) {
  const after = steps.findIndex((each) => each >= step);
  if (after <= 0) return after ? values.at(-1) : values[0];
  const share = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return values[after - 1] + share * (values[after] - values[after - 1]);
}

export class Chart {
  /** Returns by episode. `source` has `env_steps`, `mean` and `algorithm`; `steps` is the length of an episode. */
  constructor(svg, source, steps) {
    Object.assign(this, { svg, source, steps, episodes: [], most: 1 });
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width) return;
    const { episodes, steps } = this;
    const last = Math.max(30, Math.ceil((episodes.length + 1) / 10) * 10);
    const highest = Math.max(5, Math.ceil(steps / 5) * 5);
    const x = (episode) => MARGIN.left + (episode - 0.5) / last * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - value / highest * (height - MARGIN.top - MARGIN.bottom);
    const text = (content, attributes) => shape("text", attributes, content);
    const parts = [];
    for (let value = 0; value <= highest; value += 5) {
      parts.push(shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        text(`${value}`, { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }));
    }
    const step = last <= 50 ? 10 : last <= 100 ? 20 : 50;
    for (let episode = step; episode <= last; episode += step) {
      parts.push(text(`${episode}`, { class: "tick", x: x(episode), y: height - MARGIN.bottom + 18, "text-anchor": "middle" }));
    }
    parts.push(text("episode", { class: "tick", x: width / 2, y: height - 8, "text-anchor": "middle" }));
    parts.push(...this.drawOptimum(x, y, last), ...this.drawSource(x, y, last), ...this.drawEvents(x, height));
    const line = episodes.map(({ total }, index) => `${x(index + 1)},${y(total)}`).join(" ");
    parts.push(shape("polyline", { class: "curve", points: line }));
    const radius = episodes.length > 60 ? 2.5 : 4;
    for (const [index, { total, player }] of episodes.entries()) {
      const [left, top] = [x(index + 1), y(total)];
      parts.push(player === "you"
        ? shape("rect", { class: "dot you", x: left - radius, y: top - radius, width: 2 * radius, height: 2 * radius })
        : shape("circle", { class: "dot", cx: left, cy: top, r: radius }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...parts);
    this.svg.setAttribute("aria-label", episodes.length
      ? `Return of each episode so far: ${episodes.map(({ total }) => total).join(", ")}`
      : "Return of each episode: none so far");
  }

  /** The best possible return: a line for each goal, as long as it was that. */
  drawOptimum(x, y, last) {
    const all = [...this.episodes.map(({ optimum }) => optimum)];
    while (all.length < last) all.push(this.most);
    const points = all.flatMap((value, index) => [`${x(index + 0.5)},${y(value)}`, `${x(index + 1.5)},${y(value)}`]);
    return [shape("polyline", { class: "optimum", points: points.join(" ") }),
      shape("text", { class: "label optimum-label", x: x(last + 0.5), y: y(all.at(-1)) - 6, "text-anchor": "end" },
        "best possible")];
  }

  /** The teacher's mean return after as many steps as the model has taken, all its rooms counted. */
  drawSource(x, y, last) {
    if (!this.source) return [];
    const { env_steps, mean, algorithm } = this.source;
    const points = Array.from({ length: last }, (_, index) =>
      `${x(index + 1)},${y(interpolate(env_steps, mean, (index + 1) * this.steps))}`);
    const end = interpolate(env_steps, mean, last * this.steps);
    return [shape("polyline", { class: "source", points: points.join(" ") }),
      shape("text", { class: "label source-label", x: x(last + 0.5), y: y(end) - 6, "text-anchor": "end" },
        `its teacher, ${algorithm}, after as many steps`)];
  }

  drawEvents(x, height) {
    return this.episodes.flatMap(({ event }, index) => event ? [
      shape("line", { class: "event", x1: x(index + 0.5), x2: x(index + 0.5), y1: MARGIN.top, y2: height - MARGIN.bottom }),
      shape("text", { class: "label event-label", x: x(index + 0.5) + 4, y: MARGIN.top + 8 }, EVENTS[event]),
    ] : []);
  }
}
