// Rates out of counters, as in the terminal interface: what two looks differ by, and the last minutes of it.

const LENGTH = 180;
const LONGEST_GAP = 30; // seconds; after more, a rate would be an average over who knows what

export class History {
  #counters = new Map();
  #series = new Map();
  #at = 0;

  feed(look) {
    const passed = look.at - this.#at;
    const series = new Map();
    const counters = new Map(countersOf(look));
    for (const [key, count] of counters) {
      const before = this.#counters.get(key);
      const known = before !== undefined && passed > 0 && passed <= LONGEST_GAP;
      const rates = this.#series.get(key) ?? [];
      rates.push(known ? Math.max(0, count - before) / passed : 0); // a counter that shrank belongs to another life
      if (rates.length > LENGTH) rates.shift();
      series.set(key, rates);
    }
    this.#counters = counters;
    this.#series = series;
    this.#at = look.at;
  }

  rate(key) {
    return this.#series.get(key)?.at(-1) ?? 0;
  }

  series(key) {
    return this.#series.get(key) ?? [];
  }
}

export const kindOfLabel = (label) =>
  label === "derp" ? "relay" : label.startsWith("peer") ? "peer-relay" : "direct";

export const flowKey = (flow) => [flow.protocol, ...flow.local, ...(flow.remote ?? [])].join(" ");

function* countersOf(look) {
  for (const way of ["received", "sent"]) {
    const kinds = { direct: 0, relay: 0, "peer-relay": 0 };
    for (const [label, count] of Object.entries(look[way])) kinds[kindOfLabel(label)] += count;
    for (const [kind, count] of Object.entries(kinds)) yield [`${way} ${kind}`, count];
    for (const peer of look.peers) yield [`${way} peer ${peer.id}`, peer[way]];
    for (const flow of look.flows) yield [`${way} flow ${flowKey(flow)}`, flow[`bytes_${way}`] ?? 0];
  }
}
