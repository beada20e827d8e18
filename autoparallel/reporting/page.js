"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const coarse = matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function template() {
    const axis = {
      gridcolor: colour("--grid"),
      linecolor: colour("--line"),
      zerolinecolor: colour("--line"),
      tickcolor: colour("--line"),
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--ink"), size: narrow.matches ? 11 : 13,
                family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" },
        hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"),
                      font: { color: colour("--ink") } },
        xaxis: axis,
        yaxis: axis,
      },
    };
  }

  function rows(spec) {
    const shown = spec.data.filter((trace) => trace.showlegend !== false && trace.name);
    return spec.layout.showlegend === false ? 0 : Math.ceil(shown.length / 2);
  }

  function note(annotation) {
    if (annotation.name === "warning")
      return { ...annotation, font: { ...annotation.font, color: colour("--warning") } };
    return annotation.name === "plate" ? { ...annotation, bgcolor: colour("--plate") } : annotation;
  }

  function fitted(spec) {
    const layout = { ...spec.layout, template: template(), dragmode: coarse.matches ? false : "zoom",
                     annotations: (spec.layout.annotations || []).map(note) };
    if (narrow.matches) {
      layout.height = (layout.height || 360) + 20 * rows(spec);
      layout.margin = { ...layout.margin, l: 4, r: 8 };
    }
    return layout;
  }

  const charts = [...document.querySelectorAll('script[type="application/json"]')].map((block) => ({
    box: document.getElementById(block.dataset.for),
    spec: JSON.parse(block.textContent),
  }));
  const config = { responsive: true, displaylogo: false, displayModeBar: false };

  async function draw() {
    for (const { box, spec } of charts) {
      try {
        await Plotly.newPlot(box, spec.data, fitted(spec), config);
        root.dataset.drawn = Number(root.dataset.drawn || 0) + 1;
      } catch (error) {
        box.textContent = "This figure could not be drawn; the numbers are in the tables.";
        console.error(box.id, error);
      }
      await new Promise((done) => setTimeout(done));
    }
    root.dataset.ready = "yes";
  }

  function again() {
    for (const { box, spec } of charts) {
      if (box.data) Plotly.react(box, spec.data, fitted(spec), config);
    }
  }
  dark.addEventListener("change", again);
  narrow.addEventListener("change", again);
  addEventListener("beforeprint", again);
  draw();
})();
