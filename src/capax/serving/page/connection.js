// Whether the server is there, ready and willing, and its figures once a second.
//
// Dispatches "change" when the state changes and "figures" with the status document. States:
// connecting, loading, ready, draining, failed, locked (a key is needed), mute (no model here
// writes text), gone.

import { readiness, serverStatus } from "./api.js";

const EVERY_MS = 1000;
const GONE_EVERY_MS = 2000;

export class Connection extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.phase = "";
    this.progress = null; // 0 to 1 while loading
    this.figures = null;
    this.timer = null;
    this.asking = null; // the promise of the question under way
    document.addEventListener("visibilitychange", () => this.askNow());
  }

  /** Whether messages can be sent. */
  get isReady() {
    return this.state === "ready";
  }

  /** Ask at once, and from then on once a second while the page can be seen. */
  async askNow() {
    await this.asking;
    clearTimeout(this.timer);
    if (document.hidden) return;
    this.asking ??= this.#ask();
    await this.asking;
    this.asking = null;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.askNow(), this.state === "gone" ? GONE_EVERY_MS : EVERY_MS);
  }

  async #ask() {
    try {
      if (!this.isReady) {
        const { status, phase, progress } = await readiness();
        if (status !== "ready") {
          this.#become(
            ["loading", "draining", "failed"].includes(status) ? status : "gone",
            phase,
            progress,
          );
          return;
        }
      }
      this.figures = await serverStatus();
      this.#become("ready");
      this.dispatchEvent(new Event("figures"));
    } catch (error) {
      this.#onError(error);
    }
  }

  #onError(error) {
    if (error.status === 401) this.#become("locked");
    else if (error.status === 501) this.#become("mute");
    else if (error.status === 503) this.#become("loading", "", null);
    else this.#become("gone");
  }

  #become(state, phase = "", progress = null) {
    if (state === this.state && phase === this.phase && progress === this.progress) return;
    const was = this.state;
    Object.assign(this, { state, phase, progress });
    this.dispatchEvent(new CustomEvent("change", { detail: { was } }));
  }
}
