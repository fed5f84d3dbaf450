// Rows of a file to packed groups (matmul/formats.h) and single rows back to float32.
#pragma once

#include <stdint.h>

#include "quants/encoding.h"

namespace capax {

// Bytes of a row in the file, of one packed group of 16 rows, and of all groups.
int64_t row_nbytes(Encoding encoding, int64_t n_in);
int64_t group_nbytes(Encoding encoding, int64_t n_in);
int64_t packed_nbytes(Encoding encoding, int64_t n_out, int64_t n_in);

// Pack n_rows (1..16) consecutive rows; missing rows become zeros.
void pack_group(Encoding encoding, const uint8_t* rows, int n_rows, int64_t n_in, uint8_t* group);
// Row r (0..15) of a packed group as float32 [n_in], bit-equal to `dequantize` of the file's row.
void dequantize_packed_row(Encoding encoding, const uint8_t* group, int r, int64_t n_in, float* out);

}  // namespace capax
