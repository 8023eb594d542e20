"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");

  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Text only: what is shown may be a stranger's class name.
  const show = (words, x, y) => {
    tip.textContent = words;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  const hide = () => { tip.hidden = true; };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    if (!marks.length) continue;
    let at = -1;
    const mark = (next) => {
      if (marks[at]) marks[at].classList.remove("on");
      at = next;
      if (!marks[at]) { hide(); return; }
      marks[at].classList.add("on");
      const box = marks[at].getBoundingClientRect();
      show(marks[at].dataset.tip, box.left + box.width / 2, box.top + box.height / 2);
    };
    chart.addEventListener("pointermove", (event) => {
      const found = event.target.closest("[data-tip]");
      if (found) show(found.dataset.tip, event.clientX, event.clientY); else hide();
    });
    chart.addEventListener("pointerleave", () => { mark(-1); });
    chart.addEventListener("blur", () => { mark(-1); });
    chart.addEventListener("keydown", (event) => {
      const last = marks.length - 1;
      const next = { ArrowRight: Math.min(at + 1, last), ArrowDown: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0),
        ArrowUp: Math.max(at - 1, 0), Home: 0, End: last, Escape: -1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      mark(next);
    });
  }

  for (const heat of document.querySelectorAll(".heat")) {
    const picture = heat.querySelector("img");
    const names = JSON.parse(heat.dataset.names);
    const values = Uint8Array.from(atob(heat.dataset.values), (letter) => letter.charCodeAt(0));
    const side = names.length;
    const low = Number(heat.dataset.low), high = Number(heat.dataset.high);
    const cell = heat.querySelector(".cell");
    let row = -1, column = -1;
    const percent = (value) => {
      if (value === 0) return `at most ${(100 * 10 ** low).toPrecision(2)} %`;
      return `${(100 * 10 ** (low + (high - low) * value / 255)).toPrecision(2)} %`;
    };
    const point = (x, y) => {
      const box = picture.getBoundingClientRect();
      const inner = heat.getBoundingClientRect();
      const size = box.width / side;
      cell.hidden = false;
      cell.style.width = cell.style.height = `${Math.max(size, 4)}px`;
      cell.style.left = `${box.left - inner.left + column * size}px`;
      cell.style.top = `${box.top - inner.top + row * size}px`;
      show(`${names[row]} \u2192 ${names[column]}\n${percent(values[row * side + column])}`, x, y);
    };
    const leave = () => { cell.hidden = true; hide(); };
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      row = Math.min(side - 1, Math.max(0, Math.floor(side * (event.clientY - box.top) / box.height)));
      column = Math.min(side - 1, Math.max(0, Math.floor(side * (event.clientX - box.left) / box.width)));
      point(event.clientX, event.clientY);
    });
    picture.addEventListener("pointerleave", leave);
    picture.addEventListener("blur", leave);
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      row = Math.min(side - 1, Math.max(0, row + step[0]));
      column = Math.min(side - 1, Math.max(0, column + step[1]));
      const box = picture.getBoundingClientRect();
      point(box.left + (column + 1) * box.width / side, box.top + (row + 1) * box.height / side);
    });
  }

  const key = (cell) => {
    if (cell.dataset.key !== undefined) return Number(cell.dataset.key);
    const words = cell.textContent.trim();
    const number = Number.parseFloat(words.replace(/,/g, ""));
    return cell.classList.contains("n") ? (Number.isNaN(number) ? -Infinity : number) : words;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true, sensitivity: "base" }));
  for (const table of document.querySelectorAll(".table")) {
    const body = table.querySelector("tbody");
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const rising = before === "none" ? !numeric : before === "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].map((line) => [key(line.cells[place]), line]);
      rows.sort((a, b) => (rising ? 1 : -1) * compare(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    }));
    const field = table.querySelector("input[type=search]");
    if (!field) continue;
    const count = table.querySelector(".count");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const line of body.rows) {
        const content = line.textContent.toLowerCase();
        line.hidden = !words.every((word) => content.includes(word));
        shown += line.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${body.rows.length} rows` : "";
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
