// Copy the rows whose logits are wanted: what follows works on them alone.
#pragma once

#include "program/program.h"

namespace capax {

class GatherOperation : public Operation {
 public:
  GatherOperation(Program& program, int from, int to) : program_(program), from_(from), to_(to) {}
  void run(Context& context, int rank) override;

 private:
  Program& program_;
  int from_, to_;
};

}  // namespace capax
