// How actions are drawn from logits: as `uniform`, `action_probabilities` and `draw` of heads_ad.py do it.

const GOLDEN = 0x9e3779b97f4a7c15n, FIRST = 0xbf58476d1ce4e5b9n, SECOND = 0x94d049bb133111ebn;
const wrap = (value) => BigInt.asUintN(64, value);

function mix(state) {
  state = wrap((state ^ (state >> 30n)) * FIRST);
  state = wrap((state ^ (state >> 27n)) * SECOND);
  return state ^ (state >> 31n);
}

/** A number in [0, 1) that depends on a seed and a counter alone (SplitMix64). */
export function uniform(seed, counter) {
  const stream = mix(wrap((BigInt(seed) + 1n) * GOLDEN));
  return Number(mix(wrap(stream + (BigInt(counter) + 1n) * GOLDEN)) >> 11n) * 2 ** -53;
}

function softmax(scores) {
  const most = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((total, each) => total + each, 0);
  return powers.map((each) => each / sum);
}

/** Probabilities of the actions; `sampling` has temperature, top_k, top_p and epsilon. */
export function probabilities(logits, { temperature, top_k, top_p, epsilon }) {
  let scores = Array.from(logits, (logit) => logit / temperature);
  if (top_k > 0) {
    const least = [...scores].sort((a, b) => b - a)[Math.min(top_k, scores.length) - 1];
    scores = scores.map((score) => (score < least ? -Infinity : score));
  }
  if (top_p < 1) { // drop the least likely ones as long as they have at most 1 - top_p together
    const order = scores.map((_, index) => index).sort((a, b) => scores[a] - scores[b]);
    const chances = softmax(scores);
    let sum = 0;
    for (const index of order.slice(0, -1)) {
      sum += chances[index];
      if (sum <= 1 - top_p) scores[index] = -Infinity;
    }
  }
  return softmax(scores).map((chance) => chance + epsilon * (1 / scores.length - chance));
}

/** The action into whose share a number in [0, 1) falls. */
export function draw(chances, number) {
  const sums = [];
  chances.reduce((total, each, index) => (sums[index] = total + each), 0);
  return sums.slice(0, -1).filter((sum) => sum / sums.at(-1) <= number).length;
}
