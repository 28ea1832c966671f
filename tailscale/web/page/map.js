// The map: ourselves in the middle, who was spoken with around us, the others further out, and how packets travel.

import { inRate, shape } from "/draw.js";

const DRAWN = 60; // peers; the rest are in the table
const NAMED = 36; // with so many, only those that were spoken with have their names drawn
const FAST = 100_000; // bytes a second
const LONGEST_NAME = 18;
const HUB = 0.58; // of the way, where a relay stands

export function drawMap(svg, look, history) {
  const width = svg.clientWidth || 800, height = svg.clientHeight || 400;
  const middle = { x: width / 2, y: height / 2 };
  const peers = look.peers.slice(0, DRAWN).sort((a, b) => (a.id < b.id ? -1 : 1));
  const used = new Set(look.exits.filter((one) => one.is_used).map((one) => one.id));
  const links = [], hubs = [], nodes = [];
  peers.forEach((peer, number) => {
    const place = placeOf(peer, number, peers.length, middle, width, height);
    const kind = peer.has_spoken ? peer.kind.replace(" ", "-") : "";
    const rate = history.rate(`received peer ${peer.id}`) + history.rate(`sent peer ${peer.id}`);
    if (kind) links.push(...linkTo(middle, place, kind, rate));
    if (kind && kind !== "direct") hubs.push(hub(middle, place, kind, peer.path.slice(peer.kind.length).trim()));
    const isNamed = peer.has_spoken || peers.length <= NAMED;
    const isUsed = used.has(peer.id);
    nodes.push(node(place, `${kind || (peer.online ? "idle" : "away")}${isUsed ? " used" : ""}`, isNamed ? peer.hostname : "", rate, peer));
  });
  nodes.push(node(middle, "self", look.hostname, 0, null));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  keepMoving(svg, [shape("g", { id: "links" }, ...links), shape("g", {}, ...hubs), shape("g", {}, ...nodes)]);
}

// Lines that move are taken over as they are where nothing of them changed, or each look would start them anew.
function keepMoving(svg, groups) {
  const before = svg.querySelector("#links");
  if (before && before.isEqualNode(groups[0])) groups[0] = before;
  const rest = [...svg.children].filter((child) => child !== groups[0]);
  rest.forEach((child) => child.remove());
  if (groups[0].parentNode !== svg) svg.prepend(groups[0]);
  svg.append(...groups.slice(1));
}

function placeOf(peer, number, count, middle, width, height) {
  const angle = (number / count) * 2 * Math.PI - Math.PI / 2 + (count === 2 ? Math.PI / 2 : 0);
  const reach = peer.has_spoken ? 0.74 : peer.online ? 0.9 : 1;
  const y = middle.y + Math.sin(angle) * (middle.y - 40) * reach;
  return { x: middle.x + Math.cos(angle) * (middle.x - 62) * reach, y, isAbove: y < middle.y - 12 };
}

function linkTo(from, to, kind, rate) {
  const d = `M${from.x.toFixed(1)} ${from.y.toFixed(1)}L${to.x.toFixed(1)} ${to.y.toFixed(1)}`;
  const width = (1.5 + Math.min(4, Math.log10(1 + rate / 1000))).toFixed(1);
  const pace = rate >= FAST ? "fast" : rate >= 0.5 ? "slow" : "";
  return [shape("path", { class: `link ${kind}`, d, "stroke-width": width }), shape("path", { class: `pulse ${pace}`, d })];
}

function hub(from, to, kind, where) {
  const name = kind === "relay" ? where : "peer", half = 6 + name.length * 3.2;
  const x = from.x + (to.x - from.x) * HUB, y = from.y + (to.y - from.y) * HUB;
  const box = { x: x - half, y: y - 9, width: 2 * half, height: 18, rx: 9 };
  return shape("g", { class: `hub ${kind}` }, shape("title", {}, where), shape("rect", box), shape("text", { x, y: y + 3.5 }, name));
}

function node(place, style, name, rate, peer) {
  const radius = style === "self" ? 12 : peer.has_spoken ? 8 : 5;
  const shown = name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}…` : name;
  const isAbove = place.isAbove === true; // its link leaves downwards, so its words stand above
  const words = { x: place.x, y: isAbove ? place.y - radius - 7 : place.y + radius + 15 };
  return shape(
    "g",
    { class: `node ${style}` },
    peer && shape("title", {}, `${peer.name}\n${peer.address}\n${peer.path || "not spoken with"}`),
    shape("circle", { cx: place.x, cy: place.y, r: radius }),
    shape("text", words, shown),
    rate >= 0.5 ? shape("text", { class: "rate", x: words.x, y: words.y + (isAbove ? -14 : 14) }, inRate(rate)) : null,
  );
}
