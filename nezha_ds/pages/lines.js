// Reads values off the line charts: point at one, or focus it and use the arrow keys. Everything comes from the
// drawing itself: a path's points, and the reach of the axes in the drawing's attributes.
for (const svg of document.querySelectorAll('.plot.lines > svg')) {
  const height = svg.height.baseVal.value;
  const reach = name => svg.dataset[name].split(',').map(Number);
  const [x0, x1] = reach('x'), [y0, y1] = reach('y');
  const log = 'log' in svg.dataset, percent = 'percent' in svg.dataset;
  const show = value => percent ? `${+(100 * value).toPrecision(3)}%`
    : Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 && value ? value.toExponential(2) : String(+value.toPrecision(4));
  const valueAt = down => {
    const share = 1 - down / height;
    return log ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0);
  };
  let lines, box, rule, place;

  function prepare() {
    lines = [...svg.querySelectorAll('path.line')].map(path => ({
      name: path.dataset.name, style: path.getAttribute('class'),
      points: path.getAttribute('d').split(/[M ]/).filter(Boolean).map(point => point.split(',').map(Number)),
    }));
    box = document.createElement('div');
    box.className = 'read';
    box.setAttribute('aria-live', 'polite');
    rule = document.createElementNS(svg.namespaceURI, 'line');
    rule.setAttribute('class', 'rule');
    rule.setAttribute('y1', 0);
    rule.setAttribute('y2', height);
    svg.append(rule);
    svg.parentElement.append(box);
  }

  function read(share) {
    if (!lines) prepare();
    place = Math.min(1, Math.max(0, share));
    for (const end of ['x1', 'x2']) rule.setAttribute(end, `${100 * place}%`);
    const head = document.createElement('b');
    head.textContent = `${show(x0 + place * (x1 - x0))} ${svg.dataset.name}`;
    box.replaceChildren(head, ...lines.filter(line => line.points.length).map(line => {
      const nearest = line.points.reduce((one, other) =>
        Math.abs(other[0] - 1000 * place) < Math.abs(one[0] - 1000 * place) ? other : one);
      const row = document.createElement('span'), key = document.createElement('i');
      key.className = `key ${line.style}`;
      row.append(key, `${line.name} ${show(valueAt(nearest[1]))}`);
      return row;
    }));
    box.hidden = rule.hidden = false;
    rule.style.display = '';
    const room = svg.parentElement.clientWidth, left = svg.getBoundingClientRect().left
      - svg.parentElement.getBoundingClientRect().left + place * svg.getBoundingClientRect().width;
    box.style.left = `${Math.max(0, Math.min(left + 10, room - box.offsetWidth))}px`;
  }

  function hide() {
    if (lines) { box.hidden = true; rule.style.display = 'none'; }
  }

  svg.addEventListener('pointermove', event => {
    const field = svg.getBoundingClientRect();
    read((event.clientX - field.left) / field.width);
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', event => {
    const move = { ArrowLeft: -0.01, ArrowRight: 0.01, Home: -1, End: 1 }[event.key];
    if (event.key === 'Escape') hide();
    if (!move) return;
    event.preventDefault();
    read((place ?? (move < 0 ? 1 : 0)) + move);
  });
}
