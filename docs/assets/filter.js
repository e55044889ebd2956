// Adds menus above the table of systems that filter its rows by kind and task, and a box to search in them.
(() => {
  const table = document.querySelector("[data-filter] table");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const cell = (row, column) => row.cells[column].textContent.trim();
  const bar = document.createElement("div");
  bar.className = "filter";
  const status = document.createElement("span");
  const conditions = [];
  const apply = () => {
    const shown = rows.filter((row) => (row.hidden = !conditions.every((test) => test(row))) === false);
    status.textContent = `${shown.length} of ${rows.length}`;
  };
  const add = (control, label, test) => {
    control.setAttribute("aria-label", label);
    control.addEventListener("input", apply);
    conditions.push(test);
    bar.append(control);
  };
  [["kind", 1], ["task", 2]].forEach(([name, column]) => {
    const values = [...new Set(rows.flatMap((row) => cell(row, column).split(", ")))];
    const select = document.createElement("select");
    select.append(new Option(`every ${name}`, ""), ...values.map((value) => new Option(value)));
    add(select, name, (row) => !select.value || cell(row, column).split(", ").includes(select.value));
  });
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "search";
  add(box, "search", (row) => row.textContent.toLowerCase().includes(box.value.toLowerCase()));
  bar.append(status);
  document.querySelector("[data-filter]").prepend(bar);
  apply();
})();
