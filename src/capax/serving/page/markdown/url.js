// Which addresses a link in a model's answer may have.

const SCHEMES = new Set(["http:", "https:", "mailto:"]);

/**
 * Return the address in its normal form if it is absolute and of a scheme that cannot run code,
 * else null. What is checked is what is used: the browser's own parse of it.
 */
export function safeUrl(text) {
  let url;
  try {
    url = new URL(text.trim());
  } catch {
    return null;
  }
  return SCHEMES.has(url.protocol) ? url.href : null;
}
