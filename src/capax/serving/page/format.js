// Figures as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 104857600 -> "100 MiB". */
export function bytes(n) {
  let value = n;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const places = unit >= 3 ? 2 : unit === 0 ? 0 : 1; // of figures below 10
  const digits = Math.max(0, places - (value >= 100 ? 2 : value >= 10 ? 1 : 0));
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** 12345 -> "12,345". */
export function count(n) {
  return Math.round(n).toLocaleString("en-US");
}

/** A count and its noun: (1, "token") -> "1 token". */
export function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** 0.0312 -> "31 ms", 2.5 -> "2.50 s", 200 -> "3 min 20 s". */
export function seconds(s) {
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  return s < 60 ? `${s.toFixed(s < 10 ? 2 : 1)} s` : duration(s);
}

/** 7.9 -> "7 s", 200 -> "3 min 20 s", 8000 -> "2 h 13 min", 200000 -> "2 d 7 h". */
export function duration(s) {
  const minutes = Math.floor(s / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes < 1) return `${Math.floor(s)} s`;
  if (hours < 1) return `${minutes} min ${Math.floor(s % 60)} s`;
  return hours < 48
    ? `${hours} h ${minutes % 60} min`
    : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** 41.27 -> "41.3", 412.7 -> "413". */
export function rate(perSecond) {
  return perSecond >= 100 ? count(perSecond) : perSecond.toFixed(1);
}

/** 0.4567 -> "45.7 %". */
export function percent(fraction, digits = 1) {
  return `${(fraction * 100).toFixed(digits)} %`;
}
