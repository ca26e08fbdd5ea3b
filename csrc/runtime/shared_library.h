#pragma once

#include <string>
#include <vector>

namespace openmythos::runtime {

// A library of the driver: the one this process has loaded already, whatever its version, or else the first that opens.
class SharedLibrary {
public:
    // `prefix` is what the file name of a loaded one begins with, `names` are tried in order.
    SharedLibrary(const std::string& prefix, const std::vector<std::string>& names);

    // Looks a function up; a required one that is missing is a DriverError that names the library.
    template <class F>
    void find(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(symbol(name, true));
    }
    template <class F>
    void find_optional(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(symbol(name, false));
    }
    const std::string& path() const { return path_; }

private:
    void* symbol(const char* name, bool required) const;

    void* handle_ = nullptr;  // never closed: a driver does not survive that
    std::string path_;
};

}  // namespace openmythos::runtime
