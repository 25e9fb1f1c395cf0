// Tells when the rest of the page cannot. It is old JavaScript on purpose, and stands before all that is long.

addEventListener("load", function () {
  var text = "";
  if (document.getElementById("end") === null) {
    text = "This page was cut off on its way here, so it has no lamp; get it again.";
  } else if (window.mlxlava === undefined) {
    text = "This browser cannot run this page; a newer one, with WebGL 2 or WebAssembly with SIMD, can.";
  }
  if (text !== "") document.getElementById("note").textContent = text;
});
