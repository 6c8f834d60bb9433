// A live chat with one session. Connections may break and tokens expire: no word is lost, and none comes twice.
// `getToken` asks your own backend for a client token; `show(id, role, text)` draws a message, and again as it grows.
export function openChat({ url, sessionId, getToken, show, onStatus = () => {} }) {
  const base = `${url}/v1/sessions/${sessionId}`;
  const writing = new Map(); // the texts that are being written, and by which run, by the id of their message
  let token, source, closed = false, cursor = "0"; // from the beginning; then the id of the last frame
  const textOf = (event) => event.content.map((block) => block.text ?? "").join("");
  const grow = (id, more) => show(id, "agent", writing.get(id).text += more);
  const settle = (id, text) => { writing.delete(id); show(id, "agent", text); };
  const dropUnfinished = (run) => writing.forEach((of, id) => (run ?? of.run) === of.run && settle(id, null));
  const handlers = {
    "user.message": (event) => show(event.id, "user", textOf(event)),
    "event_start": ({ event, run_id: run }) => event.type === "agent.message" && writing.set(event.id, { run, text: "" }),
    "event_delta": ({ event_id: id, delta }) => writing.has(id) && grow(id, delta.content.text), // else it is reasoning
    "agent.message": (event) => settle(event.id, textOf(event)), // this is what counts
    "span.model_request_end": (event) => event.is_error && dropUnfinished(event.run_id), // the call is tried again
    "session.status_running": () => onStatus("running"),
    "session.status_idle": () => { dropUnfinished(); onStatus("idle"); },
  };
  async function connect() {
    token = await getToken().catch(() => null);
    if (closed || !token) return closed || setTimeout(connect, 1000);
    source = new EventSource(`${base}/events/stream?${new URLSearchParams({ access_token: token, after: cursor })}`);
    for (const [type, handle] of Object.entries(handlers))
      source.addEventListener(type, (frame) => { cursor = frame.lastEventId; handle(JSON.parse(frame.data)); });
    // The browser itself comes back to where it was, until it is refused: then the token has expired.
    source.onerror = () => source.readyState === EventSource.CLOSED && setTimeout(connect, 1000);
  }
  async function send(content, key = crypto.randomUUID()) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": key, Authorization: `Bearer ${token ??= await getToken().catch(() => null)}` };
    const sent = await fetch(`${base}/messages`, { method: "POST", headers, body: JSON.stringify({ content }) }).catch(() => null);
    const { code, detail } = sent && !sent.ok ? await sent.json().catch(() => ({})) : {};
    if (sent && sent.status !== 401 && sent.status < 500 && code !== "idempotency_in_flight") return sent.ok || Promise.reject(new Error(detail));
    await new Promise((resume) => setTimeout(resume, 1000));
    if (sent?.status === 401) token = await getToken().catch(() => null);
    return send(content, key); // under its key it is one message, however often it is sent
  }
  connect();
  return { send, close: () => { closed = true; source?.close(); } };
}
