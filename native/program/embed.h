// Rows of the embedding table for the step's tokens.
#pragma once

#include "program/program.h"

namespace capax {

class EmbedOperation : public Operation {
 public:
  EmbedOperation(Program& program, const Weight* table, int out) : program_(program), table_(table), out_(out) {}
  void run(Context& context, int rank) override;

 private:
  Program& program_;
  const Weight* table_;
  int out_;
};

}  // namespace capax
