// Loaded before torch where no driver is found. Autograd asks for "the accelerator" and its streams: it is told that there is none,
// since streams are followed in Python.
#include <optional>

namespace c10 {
enum class DeviceType : signed char {};
}

#define VISIBLE __attribute__((visibility("default")))

namespace at {
namespace accelerator {
VISIBLE std::optional<c10::DeviceType> getAccelerator(bool) { return std::nullopt; }
VISIBLE bool isAccelerator(c10::DeviceType) { return false; }
}  // namespace accelerator
}  // namespace at
