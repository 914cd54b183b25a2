"use strict";
const make = (tag, text, attributes = {}) => {
  const element = document.createElement(tag);
  if (text) element.append(text);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const button = (text, action, attributes) => {
  const element = make("button", text, { type: "button", ...attributes });
  element.addEventListener("click", action);
  return element;
};
// a table or a picture, with the buttons that belong above it
const tools = (place, name) => {
  if (place.previousElementSibling?.classList.contains("tools")) return place.previousElementSibling;
  const row = make("div", "", { class: "tools", role: "group", "aria-label": name });
  place.before(row);
  return row;
};
const number = (cell) => (cell.dataset.v ? Number(cell.dataset.v) : -Infinity);
const value = (cell) => (cell.dataset.v === undefined ? cell.textContent.trim() : number(cell));

// sort
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const sort = button("", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? (a < b ? -1 : a > b ? 1 : 0) : String(a).localeCompare(String(b), "en", { numeric: true })));
      if (down) rows.reverse();
      body.append(...rows.map(([, row]) => row));
    });
    sort.append(...head.childNodes);
    head.append(sort);
  });
}

// download as CSV: every text quoted, and none that a spreadsheet takes for a formula
const field = (text) => `"${(/^[=+\-@\t\r\n]/.test(text) && !Number.isFinite(Number(text)) ? "'" + text : text).replaceAll('"', '""')}"`;
const csv = (table) => {
  const kept = [...table.tHead.rows[0].cells].map((head) => !head.classList.contains("chart"));
  const text = (cell) => field(cell.dataset.v ?? cell.textContent.trim().replace(/\s+/g, " "));
  return "\ufeff" + [...table.rows].map((row) => [...row.cells].filter((_, i) => kept[i]).map(text).join(",")).join("\r\n") + "\r\n";
};
for (const table of document.querySelectorAll("table")) {
  const place = table.closest(".scroll") ?? table;
  const name = place.getAttribute("aria-label") ?? table.caption.textContent;
  tools(place, name).append(
    button("CSV", () => {
      const link = make("a", "", { download: name.replace(/[^\w-]+/g, "-").slice(0, 60) + ".csv" });
      link.href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }, { "aria-label": `CSV: download ${name}` }),
  );
}

// a table that is wider than its place says so: some systems hide scroll bars
for (const place of document.querySelectorAll(".scroll:has(table)")) {
  const more = make("span", "scroll sideways for more \u2192", { class: "more" });
  tools(place, place.getAttribute("aria-label")).append(more);
  new ResizeObserver(() => {
    more.hidden = place.scrollWidth <= place.clientWidth + 1;
  }).observe(place);
}

// search, and "only changed", for long tables
for (const table of document.querySelectorAll("table[data-search]")) {
  const place = table.closest(".scroll");
  const input = make("input", "", { type: "search", "aria-label": `Search ${table.dataset.search}`, placeholder: `Search ${table.dataset.search}` });
  const box = make("input", "", { type: "checkbox" });
  const label = make("label", box);
  label.append("Only changed");
  const count = make("span", "", { role: "status" });
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (box.checked && !("changed" in row.dataset)) || !words.every((word) => text.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  input.addEventListener("input", filter);
  box.addEventListener("change", filter);
  tools(place, "").prepend(input, label, count);
}

// the picture of the network: zoom and search
for (const picture of document.querySelectorAll("svg.picture")) {
  const place = picture.closest(".scroll");
  const { width, height } = picture.viewBox.baseVal;
  const fit = () => Math.min(1, (place.clientWidth - 2) / width, (place.clientHeight - 2) / height);
  let scale = 1;
  const count = make("span", "", { role: "status" });
  const zoom = (to) => {
    scale = Math.min(4, Math.max(0.1, to));
    picture.setAttribute("width", width * scale);
    picture.setAttribute("height", height * scale);
    count.textContent = `${Math.round(100 * scale)}%`;
  };
  const input = make("input", "", { type: "search", "aria-label": "Search nodes", placeholder: "Search nodes" });
  input.addEventListener("input", () => {
    const text = input.value.trim().toLowerCase();
    const found = [...picture.querySelectorAll(".box")].filter((box) => box.classList.toggle("found", text !== "" && box.textContent.toLowerCase().includes(text)));
    picture.classList.toggle("searched", text !== "");
    count.textContent = text ? `${found.length} found` : "";
    found[0]?.scrollIntoView({ block: "nearest", inline: "center" });
  });
  tools(place, "Picture of the network").append(
    input,
    button("+", () => zoom(scale * 1.25), { "aria-label": "Zoom in" }),
    button("\u2212", () => zoom(scale / 1.25), { "aria-label": "Zoom out" }),
    button("Fit", () => zoom(fit())),
    button("100%", () => zoom(1)),
    count,
  );
}

// copy commands; the older way where pages from files have no clipboard
for (const block of document.querySelectorAll("pre")) {
  const code = block.querySelector("code");
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  copy.setAttribute("aria-label", "Copy command");
  block.append(copy);
}

// theme: that of the system until the button is used
const dark = () => getComputedStyle(document.documentElement).colorScheme === "dark" || (document.documentElement.style.colorScheme === "" && matchMedia("(prefers-color-scheme: dark)").matches);
document.getElementById("brand").append(
  button("Light or dark", () => { document.documentElement.style.colorScheme = dark() ? "light" : "dark"; }),
);
