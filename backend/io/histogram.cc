#include "backend/io/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nexus::io {

namespace {
// 2^11 buckets up to 2^11 (each value its own), then 2^10 for every further power of two.
constexpr unsigned kLinearBits = 11;
constexpr unsigned kHalf = 1u << (kLinearBits - 1);
constexpr unsigned kTopBits = 40;
constexpr uint64_t kTop = 1ull << kTopBits;
}  // namespace

size_t Histogram::bucket_of(uint64_t ns) {
  ns = std::min(ns, kTop);
  const unsigned width = static_cast<unsigned>(std::bit_width(ns));
  if (width <= kLinearBits) return static_cast<size_t>(ns);
  const unsigned shift = width - kLinearBits;  // the leading 11 bits tell the bucket
  return (1u << kLinearBits) + (shift - 1) * kHalf + static_cast<size_t>((ns >> shift) - kHalf);
}

uint64_t Histogram::top_of(size_t bucket) {
  if (bucket < (1u << kLinearBits)) return bucket;
  const size_t above = bucket - (1u << kLinearBits);
  const unsigned shift = static_cast<unsigned>(above / kHalf) + 1;
  const uint64_t leading = above % kHalf + kHalf;
  return ((leading + 1) << shift) - 1;
}

void Histogram::record(uint64_t ns) {
  const size_t bucket = bucket_of(ns);
  if (bucket >= counts_.size()) counts_.resize((bucket / kHalf + 1) * kHalf);
  ++counts_[bucket];
  ++count_;
  max_ = std::max(max_, ns);
  sum_ += static_cast<double>(ns);
}

void Histogram::merge(const Histogram& other) {
  counts_.resize(std::max(counts_.size(), other.counts_.size()));
  for (size_t i = 0; i < other.counts_.size(); ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

double Histogram::mean() const {
  return count_ == 0 ? 0 : sum_ / static_cast<double>(count_);
}

uint64_t Histogram::percentile(double percent) const {
  if (count_ == 0) return 0;
  const double wanted = std::ceil(static_cast<double>(count_) * percent / 100);
  const uint64_t rank = std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, count_);
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::min(top_of(i), max_);
  }
  return max_;
}

}  // namespace nexus::io
