// Says to screen readers what others see happen.

import { byId } from "./dom.js";

/** Have `text` read out when the reader is free. */
export function announce(text) {
  byId("announcer").textContent = text;
}
