#include "manifest.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace openmythos::runtime {

namespace {

struct Capability {
    std::string kind;  // "sm_", "compute_"
    int major = 0, minor = 0;
    bool exact = false;
};

Capability capability(const std::string& arch) {
    Capability c;
    size_t digits = arch.find('_');
    if (digits == std::string::npos) return c;
    c.kind = arch.substr(0, digits + 1);
    int number = 0;
    size_t i = digits + 1;
    for (; i < arch.size() && arch[i] >= '0' && arch[i] <= '9' && number < 10000; i++)
        number = 10 * number + arch[i] - '0';
    c.major = number / 10, c.minor = number % 10, c.exact = i < arch.size();
    return c;
}

// How well code for `have` suits a device of `want`: 0 is not at all, higher is better.
int fitness(const std::string& have, const std::string& want) {
    if (have == want) return 1000;
    Capability a = capability(have), b = capability(want);
    if (b.kind != "sm_" || a.kind.empty()) return 0;
    if (a.kind == "sm_" && a.exact) return a.major == b.major && a.minor == b.minor ? 1001 : 0;
    if (a.kind == "sm_") return a.major == b.major && a.minor <= b.minor ? 100 + a.minor : 0;
    return 10 * a.major + a.minor <= 10 * b.major + b.minor ? 1 : 0;
}

}  // namespace

Manifest Manifest::read(const std::string& folder) {
    std::string path = folder + "/manifest.txt";
    std::ifstream file(path);
    if (!file) throw std::runtime_error("this build has no GPU code (there is no " + path + ")");
    auto require = [&](bool ok, const std::string& line) {
        if (!ok) throw std::runtime_error(path + " is damaged at '" + line.substr(0, 80) + "'; reinstall openmythos");
    };
    Manifest manifest;
    std::string line;
    std::getline(file, line);
    require(line == "openmythos code objects 1", line);
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string key;
        words >> key;
        if (key == "vendor") {
            require(bool(words >> manifest.vendor), line);
        } else if (key == "toolkit") {
            require(bool(words >> manifest.toolkit), line);
        } else if (key == "object") {
            CodeObject object;
            require(bool(words >> object.op >> object.arch >> object.file >> object.bytes >> object.sha256), line);
            require(object.sha256.size() == 64 && object.file.find('/') == std::string::npos, line);
            manifest.objects.push_back(object);
        } else {
            require(key == "kernel", line);
        }
    }
    require(manifest.vendor == "cuda" || manifest.vendor == "rocm", "vendor " + manifest.vendor);
    return manifest;
}

const CodeObject* Manifest::find(const std::string& op, const std::string& arch) const {
    const CodeObject* best = nullptr;
    int most = 0;
    for (const CodeObject& object : objects) {
        int fits = object.op == op ? fitness(object.arch, arch) : 0;
        if (fits > most) best = &object, most = fits;
    }
    return best;
}

std::string Manifest::archs() const {
    std::string text;
    for (const CodeObject& object : objects)
        if ((" " + text + ",").find(" " + object.arch + ",") == std::string::npos)
            text += (text.empty() ? "" : ", ") + object.arch;
    return text;
}

}  // namespace openmythos::runtime
