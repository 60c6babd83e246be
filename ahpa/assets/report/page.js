// Smoothing of the curves, and everything open in print. The page is whole without this.
(function () {
  "use strict";
  var slider = document.getElementById("smoothing");
  if (slider) {
    slider.closest(".controls").hidden = false;
    var lines = Array.prototype.map.call(
      document.querySelectorAll("#curves polyline.line"),
      function (line) {
        var points = line.getAttribute("points").split(" ").map(function (pair) {
          return pair.split(",").map(Number);
        });
        return { line: line, points: points };
      }
    );
    slider.addEventListener("input", function () {
      var keep = Number(slider.value);
      lines.forEach(function (item) {
        var sum = 0, weight = 0;
        var shown = item.points.map(function (point) {
          sum = keep * sum + point[1];
          weight = keep * weight + 1;
          return point[0] + "," + (sum / weight).toFixed(1);
        });
        item.line.setAttribute("points", shown.join(" "));
      });
      document.getElementById("smoothing-value").textContent = keep.toFixed(2);
    });
  }
  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (part) { part.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (part) { part.open = false; });
  });
})();
