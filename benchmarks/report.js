"use strict";
document.documentElement.classList.add("js");

for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tHead.rows], body = table.tBodies[0];
  const heads = rows.length === 1 ? [...rows[0].cells] : [rows[0].cells[0], ...rows[1].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? (column ? NaN : cell.textContent) : Number(cell.dataset.v);
  };
  const order = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const known = (row) => column === 0 || !Number.isNaN(value(row, column));
      const sorted = [...body.rows].sort((one, two) => order(value(one, column), value(two, column)));
      const filled = sorted.filter(known), empty = sorted.filter((row) => !known(row));
      body.append(...(down ? filled.reverse() : filled), ...empty);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}

const masks = document.getElementById("masks");
if (masks) {
  masks.addEventListener("change", () => {
    for (const tile of document.querySelectorAll(".tile[class*='of-']")) {
      tile.classList.toggle("on", tile.classList.contains(`of-${masks.value}`));
    }
  });
}
