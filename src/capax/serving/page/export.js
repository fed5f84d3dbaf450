// Conversations as files.

/** Return a conversation as Markdown. */
export function asMarkdown({ title, messages }) {
  const parts = messages
    .filter(({ content }) => content)
    .map(({ role, content }) => `## ${role === "user" ? "You" : "Answer"}\n\n${content.trim()}\n`);
  return [`# ${title}\n`, ...parts].join("\n");
}

/** Hand `text` to the browser as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
