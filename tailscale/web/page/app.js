// The page: trades the link for a session, reads one look a second, and shows it.

import { byId, element, fillTable, inBytes, inRate, inTime, plotTraffic, spark } from "/draw.js";
import { History, flowKey } from "/history.js";
import { drawMap } from "/map.js";

const KEPT = "session"; // of this tab, for this port
const PATIENCE = 2000; // milliseconds before a lost server is asked again
const history = new History();
let look = null;

async function begin() {
  const link = location.hash.slice(1);
  window.history.replaceState(null, "", "/"); // so that the secret is in no bookmark
  if (!link) return;
  const answer = await fetch("/session", { method: "POST", body: JSON.stringify({ link }) });
  if (answer.ok) sessionStorage.setItem(KEPT, (await answer.json()).session);
  else if (!sessionStorage.getItem(KEPT)) throw new Ended((await answer.json()).error);
}

class Ended extends Error {}

const authorized = () => ({ authorization: `Bearer ${sessionStorage.getItem(KEPT) ?? ""}` });

async function follow() {
  const answer = await fetch("/looks", { headers: authorized() });
  if (answer.status === 401) throw new Ended((await answer.json()).error);
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the device has ended");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) show(JSON.parse(line));
  }
}

async function run() {
  try {
    await begin();
    for (;;) {
      await follow().catch((error) => {
        if (error instanceof Ended) throw error;
        say(error instanceof TypeError ? "the server is gone; asking again" : error.message);
      });
      await new Promise((resolve) => setTimeout(resolve, PATIENCE));
    }
  } catch (error) {
    say(error.message);
  }
}

function say(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

function show(newest) {
  look = newest;
  history.feed(look);
  say("");
  showSelf();
  showHealth();
  draw();
  showPeers();
  showFlows();
  showTransfers();
  showExits();
  showDrops();
  document.body.dataset.looks = Number(document.body.dataset.looks ?? 0) + 1;
}

function draw() {
  if (look === null) return;
  drawMap(byId("map"), look, history);
  plotTraffic(byId("traffic"), history);
}

const setText = (id, text) => {
  if (byId(id).textContent !== text) byId(id).textContent = text;
};

const total = (way) => ["direct", "relay", "peer-relay"].reduce((sum, kind) => sum + history.rate(`${way} ${kind}`), 0);

function showSelf() {
  const state = look.state.replaceAll("_", " ");
  document.title = look.hostname || "pytailscale";
  setText("hostname", look.hostname || "?");
  byId("dot").className = `dot ${look.state}`;
  setText("standing", state === "running" ? look.tailnet : `${state} · ${look.tailnet}`);
  const facts = { address: look.addresses[0], relay: look.relay || "none", owner: look.tags.join(", ") || look.user };
  if (look.exit_node) facts.exit = look.exits.find((one) => one.is_used)?.node ?? look.exit_node;
  const told = Object.entries(facts).map(([name, fact]) => element("div", {}, element("dt", {}, name), element("dd", {}, fact ?? "")));
  byId("facts").replaceChildren(...told);
  const ways = ["direct", "relay", "peer relay"].filter((kind) => look.count[kind]).map((kind) => `${look.count[kind]} ${kind}`);
  setText("summary", [`${look.count.online} of ${look.count.peers} online`, ...ways].join(" · "));
  setText("rates", `↓ ${inRate(total("received"))}   ↑ ${inRate(total("sent"))}`);
}

function showHealth() {
  byId("health").hidden = !look.health.length;
  const warnings = look.health.map((warning) =>
    element(
      "div",
      { class: "warning" },
      element("p", {}, warning.sentence),
      warning.remedy ? element("p", { class: "remedy" }, warning.remedy) : null,
    ),
  );
  byId("health").replaceChildren(...warnings);
}

function rateCell(rate) {
  return [inRate(rate), rate >= 0.5 ? "" : "still"];
}

function pathCell(peer) {
  if (!peer.has_spoken) return peer.expired ? "key expired" : peer.online ? "" : "offline";
  const kind = element("span", { class: `kind ${peer.kind.replace(" ", "-")}` }, peer.kind);
  const where = element("span", { class: "optional" }, peer.path.slice(peer.kind.length));
  return element("span", { title: peer.path }, kind, where);
}

function showPeers() {
  const heads = [["name", "name"], ["path", "path"], ["latency", "number"], ["↓", "number"], ["↑", "number"], ["", "optional"]];
  const rows = look.peers.map((peer) => ({
    style: peer.online || peer.has_spoken ? "" : "away",
    cells: [
      peer.hostname,
      pathCell(peer),
      inTime(peer.latency),
      rateCell(history.rate(`received peer ${peer.id}`)),
      rateCell(history.rate(`sent peer ${peer.id}`)),
      spark(history.series(`received peer ${peer.id}`).map((rate, at) => rate + history.series(`sent peer ${peer.id}`)[at])),
    ],
  }));
  fillTable(byId("peers"), heads, rows);
  setText("peers-more", look.count.peers > rows.length ? `the first ${rows.length} of ${look.count.peers}` : "");
}

function showFlows() {
  const heads = [["peer", "name"], ["port"], ["way", "optional"], ["n", "number optional"], ["↓", "number"], ["↑", "number"], ["bytes", "number"]];
  const groups = Object.values(Object.groupBy ? Object.groupBy(look.flows, serviceOf) : grouped(look.flows));
  const rows = groups.map((flows) => {
    const [first] = flows, isCounted = first.protocol === "tcp";
    const sum = (read) => flows.reduce((all, flow) => all + read(flow), 0);
    const rates = ["received", "sent"].map((way) => sum((flow) => history.rate(`${way} flow ${flowKey(flow)}`)));
    return {
      cells: [
        first.peer || first.remote?.[0] || "anybody",
        `${first.protocol} ${first.port}`,
        (first.is_inbound ? "to us" : "from us") + (first.via ? ` via ${first.via}` : first.is_forwarded ? ", for others" : ""),
        String(flows.length),
        ...(isCounted ? rates.map(rateCell) : ["", ""]),
        isCounted ? inBytes(sum((flow) => flow.bytes_received + flow.bytes_sent)) : "",
      ],
    };
  });
  fillTable(byId("flows"), heads, rows);
  setText("flows-more", `${look.open.tcp} TCP · ${look.open.udp} UDP · ${look.open.listeners} listening`);
}

const serviceOf = (flow) => JSON.stringify([flow.peer || flow.remote?.[0], flow.protocol, flow.port, flow.is_inbound]);

function grouped(flows) {
  const groups = {};
  for (const flow of flows) (groups[serviceOf(flow)] ??= []).push(flow);
  return groups;
}

function showTransfers() {
  byId("transfers-card").hidden = !look.transfers.length;
  const heads = [["file", "name"], ["peer"], ["done", "number"], ["rate", "number"], ["size", "number optional"]];
  const rows = look.transfers.map((one) => ({
    cells: [
      one.name,
      `${one.is_outgoing ? "to" : "from"} ${one.peer}`,
      one.total ? `${Math.floor((100 * one.done) / one.total)} %` : inBytes(one.done),
      rateCell(one.rate ?? 0),
      one.total ? inBytes(one.total) : "",
    ],
  }));
  fillTable(byId("transfers"), heads, rows);
}

function showExits() {
  byId("exits-card").hidden = !look.exits.length;
  const heads = [["name", "name"], ["place"], ["state"], ["latency", "number"], ["", "number"]];
  const rows = look.exits.map((one) => ({
    style: one.is_used ? "used" : one.online ? "" : "away",
    cells: [
      one.node,
      [one.city, one.country || one.country_code].filter(Boolean).join(", "),
      one.is_used ? "in use" : one.online === null ? "" : one.online ? "online" : "offline",
      inTime(one.latency),
      look.may_change ? exitButton(one) : "",
    ],
  }));
  fillTable(byId("exits"), heads, rows);
}

function exitButton(one) {
  const button = element("button", { type: "button" }, one.is_used ? "stop using" : "use");
  button.addEventListener("click", async () => {
    const body = JSON.stringify({ exit_node: one.is_used ? null : one.id });
    const answer = await fetch("/exit", { method: "POST", headers: authorized(), body });
    if (!answer.ok) say((await answer.json()).error);
  });
  return button;
}

function showDrops() {
  const drops = Object.entries(look.drops).sort((a, b) => b[1] - a[1]);
  byId("drops-card").hidden = !drops.length;
  fillTable(byId("drops"), [["reason", "path"], ["", "number"]], drops.map(([name, count]) => ({ cells: [name, String(count)] })));
}

window.addEventListener("resize", draw);
run();
