#pragma once

#include <string>
#include <vector>

namespace openmythos::runtime {

// A driver library: the one that this process has already loaded, of any version, else the first one that opens.
class SharedLibrary {
public:
    // `prefix`: start of a loaded library's file name. `names`: tried in order.
    SharedLibrary(const std::string& prefix, const std::vector<std::string>& names);

    // Looks up a function; throws DriverError if it is missing.
    template <class F>
    void find(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(symbol(name, true));
    }
    // Null if it is missing.
    template <class F>
    void find_optional(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(symbol(name, false));
    }
    const std::string& path() const { return path_; }

private:
    void* symbol(const char* name, bool required) const;

    void* handle_ = nullptr;  // never closed: drivers do not support unloading
    std::string path_;
};

}  // namespace openmythos::runtime
