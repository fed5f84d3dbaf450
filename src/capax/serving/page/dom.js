// Makes elements. Text always becomes a text node: nothing here, or elsewhere on this page,
// turns a string into markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element. `attributes`: functions become listeners ("onclick"), true is an empty
 * attribute, false, null and undefined are left out. Children are nodes or text.
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element; as `el`. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Return the icon of the sprite in index.html with this name. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** Return a button that shows only an icon; `label` is what it is called. */
export function iconButton(name, label, onclick, attributes = {}) {
  return el(
    "button",
    {
      type: "button",
      class: "icon-button",
      "aria-label": label,
      title: label,
      onclick,
      ...attributes,
    },
    icon(name),
  );
}

/** Return the element of index.html with this id. */
export function byId(id) {
  return document.getElementById(id);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}
