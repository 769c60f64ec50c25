// Appended to a copy of a page. Says what is drawn and what is wrong with it, a line each, in a <pre>.
addEventListener("load", () => {
  const said = [];
  const measure = (svg) => {
    const title = svg.getAttribute("aria-label") || "";
    const fault = (what) => said.push(`FAULT ${title}: ${what}`);
    svg.scrollIntoView({ block: "center" });
    const all = svg.getBoundingClientRect();
    if (all.width < 200 || all.height < 40) fault("it has no size");
    const inside = (element, what) => {
      const box = element.getBoundingClientRect();
      const name = (element.textContent || element.getAttribute("d") || "").slice(0, 40);
      const fits = box.left >= all.left - 2 && box.right <= all.right + 2
        && box.top >= all.top - 2 && box.bottom <= all.bottom + 2;
      if (!fits) fault(`a ${what} is outside: ${name}`);
    };
    const find = (selector) => [...svg.querySelectorAll(selector)];
    const lines = find(".line"), bars = find(".bar"), marks = find(".mark"), texts = find("text");
    for (const line of lines) {
      const corners = ((line.getAttribute("d") || "").match(/[MLHV][^MLHV]/g) || []);
      const points = corners.length, length = points ? line.getTotalLength() : 0;
      if (points === 0) { fault("a line is empty"); continue; }
      if (points > 1 && !(length > 1)) { fault("a line has no length"); continue; }
      if (/NaN|undefined|inf/.test(line.getAttribute("d"))) fault("a line has no number");
      inside(line, "line");
      // Steps have no marks, and neither have very many points.
      const own = line.parentNode.querySelectorAll(".mark").length;
      if (own !== points && own !== 0) fault(`${own} marks on ${points} points`);
      if (points === 1) continue;
      // Is any of it under a pointer? Dashes have gaps.
      const matrix = line.getScreenCTM();
      let seen = false;
      for (let part = 0; part <= 60 && !seen; part++) {
        const at = line.getPointAtLength(length * part / 60).matrixTransform(matrix);
        seen = document.elementsFromPoint(at.x, at.y).includes(line);
      }
      if (!seen) fault("a line cannot be seen");
    }
    for (const mark of marks) inside(mark, "mark");
    const heights = [];
    for (const bar of bars) {
      const box = bar.getBoundingClientRect();
      if (!(box.width > 0.5 && box.height > 0.5)) fault("a bar has no size");
      inside(bar, "bar");
      heights.push([Number(bar.dataset.value), box.height]);
    }
    heights.sort((a, b) => a[0] - b[0]);
    for (let at = 1; at < heights.length; at++) {
      const [low, high] = [heights[at - 1], heights[at]];
      if (high[1] < low[1] - 1) fault(`a bar of ${high[0]} is lower than one of ${low[0]}`);
    }
    if (lines.length + bars.length + marks.length === 0) fault("it shows nothing");
    const boxes = texts.filter((text) => text.textContent.trim() !== "")
      .map((text) => [text, text.getBoundingClientRect()]);
    for (const [text, box] of boxes) {
      if (!(box.width > 1 && box.height > 1)) fault(`a text has no size: ${text.textContent}`);
      inside(text, "text");
    }
    boxes.forEach(([text, a], at) => {
      for (const [other, b] of boxes.slice(at + 1)) {
        // A box is higher than its letters.
        const over = a.left < b.right - 1 && b.left < a.right - 1
          && a.top < b.bottom - 4 && b.top < a.bottom - 4;
        if (over) fault(`texts overlap: ${text.textContent}, ${other.textContent}`);
      }
    });
    if (!find(".axis").some((text) => text.textContent.trim() !== "")) fault("no axis has a title");
    said.push(`CHART ${lines.length} ${bars.length} ${marks.length} ${title}`);
  };
  try {
    const charts = document.querySelectorAll("svg.chart");
    if (charts.length === 0) said.push("FAULT there is no picture");
    charts.forEach(measure);
    const loaded = performance.getEntriesByType("resource").filter((it) => !it.name.startsWith("data:"));
    const images = document.querySelectorAll("img, link, iframe");
    if (loaded.length + images.length > 0) said.push("FAULT the page loads something");
    if (document.documentElement.scrollWidth > innerWidth + 2) said.push("FAULT the page is too wide");
  } catch (error) {
    said.push(`FAULT ${error}`);
  }
  const result = document.createElement("pre");
  result.id = "berth-check";
  result.textContent = said.join("\n");
  document.body.append(result);
});
