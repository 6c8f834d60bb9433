// A session as React state. `getToken` may be a new function at every render; `sessionId` begins another chat.
import { useCallback, useEffect, useRef, useState } from "react";
import { openChat } from "./chat.js";

export function usePerdureSession({ url, sessionId, getToken }) {
  const [messages, setMessages] = useState([]);
  const [status, setStatus] = useState("idle");
  const latest = useRef(getToken);
  const chat = useRef(null);
  useEffect(() => void (latest.current = getToken));
  useEffect(() => {
    const show = (id, role, text) =>
      setMessages((before) => {
        const shown = text === null ? [] : [{ id, role, text }];
        const at = before.findIndex((message) => message.id === id);
        return at < 0 ? [...before, ...shown] : [...before.slice(0, at), ...shown, ...before.slice(at + 1)];
      });
    setMessages([]);
    chat.current = openChat({ url, sessionId, getToken: () => latest.current(), show, onStatus: setStatus });
    return () => chat.current.close();
  }, [url, sessionId]);
  const send = useCallback((text) => chat.current.send(text), []);
  return { messages, status, send };
}
