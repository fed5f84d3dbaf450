// What an encoder does to each row besides linear maps: positions, layer norm, GELU.
//
// All of them work in place and split the step's rows evenly among the threads.
#pragma once

#include <vector>

#include "program/program.h"

namespace capax {

// x[t] += table[position of t].
class PositionOperation : public Operation {
 public:
  // table: [n_positions, width of x], kept alive by the caller.
  PositionOperation(Program& program, int x, const float* table) : program_(program), x_(x), table_(table) {}
  void run(Context& context, int rank) override;

 private:
  Program& program_;
  int x_;
  const float* table_;
};

// x[t] = layer_norm(x[t]).
class LayerNormOperation : public Operation {
 public:
  LayerNormOperation(Program& program, int x, std::vector<float> weight, std::vector<float> bias, float eps)
      : program_(program), x_(x), weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps) {}
  void run(Context& context, int rank) override;

 private:
  Program& program_;
  int x_;
  std::vector<float> weight_, bias_;  // [width of x]
  float eps_;
};

// x[t] = gelu(x[t]).
class GeluOperation : public Operation {
 public:
  GeluOperation(Program& program, int x) : program_(program), x_(x) {}
  void run(Context& context, int rank) override;

 private:
  Program& program_;
  int x_;
};

}  // namespace capax
