// The viewer's addition to viser's page: the points are filtered and coloured where they are drawn, so that a
// slider's step sends a few numbers instead of the cloud.
//
// viser has no filters for points.  A few lines are added to its point shader when it is compiled, and their
// values are set when points are drawn.  The lowest 8 bits of each point's x, y and z hold its confidence level
// and time slot (see point_chunks.py).
(() => {
  if (window.fast3r) return; // the page has connected again

  // min level, max slot, max z, size | colour by (0 picture, 1 confidence, 2 height), of its range: from, to
  const style = new Float32Array([0, 4095, 1e30, 1, 0, 0, 1, 0]);
  let version = 1;
  window.fast3r = (numbers) => {
    style.set(numbers);
    version += 1;
  };

  const POINT_SIZE = "gl_PointSize = (scale / -world_pos.z);";
  const DECLARED = `
    uniform highp vec4 fast3rLimits;
    uniform highp vec4 fast3rColour;
    vec3 fast3rRamp(float at) {  // dark blue, teal, yellow: lighter is more, also for the colour-blind
      vec3 low = mix(vec3(0.19, 0.07, 0.42), vec3(0.13, 0.57, 0.55), clamp(2.0 * at, 0.0, 1.0));
      return mix(low, vec3(0.99, 0.91, 0.14), clamp(2.0 * at - 1.0, 0.0, 1.0));
    }
    void main() {`;
  const APPLIED = `
    highp uvec3 fast3rBits = floatBitsToUint(position) & 255u;
    highp float fast3rLevel = float(fast3rBits.x | ((fast3rBits.y & 15u) << 8));
    highp float fast3rSlot = float((fast3rBits.y >> 4) | (fast3rBits.z << 4));
    gl_PointSize = fast3rLimits.w * (scale / -world_pos.z);
    if (fast3rLevel < fast3rLimits.x || fast3rSlot > fast3rLimits.y || position.z > fast3rLimits.z) {
      gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside of the drawn volume
    }
    if (fast3rColour.x > 0.5) {
      highp float fast3rValue = fast3rColour.x > 1.5 ? position.z : fast3rLevel;
      vColor = fast3rRamp((fast3rValue - fast3rColour.y) / max(fast3rColour.z - fast3rColour.y, 1e-9));
    }`;

  const gl = WebGL2RenderingContext.prototype;
  const { shaderSource, useProgram, drawArrays } = gl;
  gl.shaderSource = function (shader, source) {
    if (source.includes("point_ball_norm") || source.includes("point_shading_enabled")) {
      if (source.includes(POINT_SIZE)) {
        source = source.replace("void main() {", DECLARED).replace(POINT_SIZE, APPLIED);
      } else if (source.includes("gl_PointSize")) {
        const notice = document.createElement("p");
        notice.textContent = "The sliders do nothing: this version of viser draws points differently.";
        notice.style = "position: fixed; left: 1em; bottom: 0; z-index: 99; color: #c00";
        document.body.append(notice);
      }
    }
    return shaderSource.call(this, shader, source);
  };
  let current = null;
  gl.useProgram = function (program) {
    current = program;
    return useProgram.call(this, program);
  };
  const known = new WeakMap(); // program -> locations of its numbers, and their values
  gl.drawArrays = function (mode, first, count) {
    if (mode === this.POINTS && current) {
      let at = known.get(current);
      if (at === undefined) {
        const [limits, colour] = ["fast3rLimits", "fast3rColour"].map((name) =>
          this.getUniformLocation(current, name),
        );
        known.set(current, (at = { limits, colour, version: 0 }));
      }
      if (at.version !== version) {
        this.uniform4fv(at.limits, style, 0, 4);
        this.uniform4fv(at.colour, style, 4, 4);
        at.version = version;
      }
    }
    return drawArrays.call(this, mode, first, count);
  };

  // On small screens viser opens its panel over the lower half of the map.
  const closed = new WeakSet();
  const close = () => {
    for (const handle of document.querySelectorAll('[style*="cursor: pointer"][style*="height: 3.5em"]')) {
      if (!closed.has(handle)) {
        closed.add(handle);
        handle.click();
      }
    }
  };
  new MutationObserver(close).observe(document.body, { childList: true, subtree: true });
  close();
})();
