"""The index arithmetic that the CUDA kernels of deformable attention share with the CPU: cells of points."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CXX = os.environ.get("CXX", "g++").split()

PROGRAM = r"""
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>
#include "fusion3d/deform_attn.h"
using namespace fusion3d;

#define EXPECT(what) if (!(what)) { std::printf("line %d: %s\n", __LINE__, #what); return 1; }

int main() {
  // A point knows the pixel above and to the left of it; outside begins a whole pixel past the last centre.
  const DeformLevel level = {3, 5, 0};
  DeformPoint<float> p = deform_point(level, 1.25f, 0.f);
  EXPECT(p.inside && p.x0 == 1 && p.y0 == 0 && p.fx == 0.25f && p.fy == 0.f);
  p = deform_point(level, -0.25f, 2.75f);
  EXPECT(p.inside && p.x0 == -1 && p.y0 == 2 && p.fx == 0.75f && p.fy == 0.75f);
  for (float bad : {-1.f, 5.f, std::nanf(""), INFINITY, -INFINITY, 3e9f}) EXPECT(!deform_point(level, bad, 1.f).inside);
  EXPECT(!deform_point(level, 1.f, 3.f).inside && deform_point(level, 4.99f, 2.99f).inside);

  // Offsets pass 2^31 elements.
  DeformAttn huge = {};
  huge.reference_levels = huge.num_levels = 4, huge.anchors = 4, huge.maps = 2, huge.queries = int64_t(1) << 33;
  EXPECT(deform_reference(huge, int64_t(1) << 32, 3, 5) == (int64_t(1) << 36) + 3 * 4 + 1);
  EXPECT(deform_map(huge, (int64_t(1) << 32) - 1) == 0 && deform_map(huge, int64_t(1) << 32) == 1);
  EXPECT(deform_level_cells({1 << 20, 1 << 20, 0}) == ((int64_t(1) << 20) + 1) * ((int64_t(1) << 20) + 1));
  const int32_t maps[] = {1, -1, 2};
  huge.map_of_query = maps;
  EXPECT(deform_map(huge, 0) == 1 && deform_map(huge, 1) < 0 && deform_map(huge, 2) < 0);

  // What pixels get from points sorted by cell is what points give to pixels.
  DeformAttn in = {};
  in.num_levels = 3;
  in.levels[0] = {4, 6, 0}, in.levels[1] = {1, 1, 24}, in.levels[2] = {5, 2, 25};
  const int64_t area = 35, cells = deform_cells(in), count = 4000;
  EXPECT(cells == 5 * 7 + 2 * 2 + 6 * 3);
  std::mt19937 random(0);
  std::uniform_real_distribution<double> anywhere(-3, 8);
  std::vector<double> given(area), got(area);
  struct Sorted { int64_t key; DeformPoint<double> point; };
  std::vector<Sorted> points;
  for (int64_t i = 0; i < count; ++i) {
    const int l = i % 3;
    const DeformLevel& on = in.levels[l];
    const DeformPoint<double> q = deform_point(on, anywhere(random), anywhere(random));
    if (!q.inside) { points.push_back({cells, q}); continue; }
    int64_t before = 0;
    for (int k = 0; k < l; ++k) before += deform_level_cells(in.levels[k]);
    points.push_back({deform_cell(on, before, q.x0, q.y0), q});
    EXPECT(points.back().key >= before && points.back().key < before + deform_level_cells(on));
    for (int k = 0; k < 4; ++k) {
      const int x = q.x0 + k % 2, y = q.y0 + k / 2;
      if (x >= 0 && y >= 0 && x < on.cols && y < on.rows)
        given[on.start + y * on.cols + x] += (k % 2 ? q.fx : 1 - q.fx) * (k / 2 ? q.fy : 1 - q.fy);
    }
  }
  std::stable_sort(points.begin(), points.end(), [](const Sorted& a, const Sorted& b) { return a.key < b.key; });
  const auto first = [&](int64_t cell) {
    return std::lower_bound(points.begin(), points.end(), cell, [](const Sorted& a, int64_t k) { return a.key < k; });
  };
  int64_t before = 0;
  for (int l = 0; l < 3; before += deform_level_cells(in.levels[l++]))
    for (int y = 0; y < in.levels[l].rows; ++y)
      for (int x = 0; x < in.levels[l].cols; ++x)
        for (int below = 0; below < 2; ++below) {
          const int64_t cell = deform_cell(in.levels[l], before, x, y - 1 + below);
          for (auto i = first(cell - 1); i < first(cell + 1); ++i)
            got[in.levels[l].start + y * in.levels[l].cols + x] +=
                (i < first(cell) ? i->point.fx : 1 - i->point.fx) * (below ? 1 - i->point.fy : i->point.fy);
        }
  for (int64_t i = 0; i < area; ++i) EXPECT(given[i] > 1 && std::abs(given[i] - got[i]) < 1e-9);
  return 0;
}
"""


@pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"no C++ compiler ({CXX[0]})")
def test_cells_lead_back_to_pixels(tmp_path):
    source, program = tmp_path / "cells.cpp", tmp_path / "cells"
    source.write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    built = [*CXX, *flags, f"-I{ROOT / 'csrc/include'}", str(source), "-o", str(program)]
    done = subprocess.run(built, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
