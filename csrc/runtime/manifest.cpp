#include "manifest.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace openmythos::runtime {

Manifest Manifest::read(const std::string& folder) {
    std::string path = folder + "/manifest.txt";
    std::ifstream file(path);
    if (!file) throw std::runtime_error("this build has no GPU code (there is no " + path + ")");
    auto require = [&](bool ok, const std::string& line) {
        if (!ok) throw std::runtime_error(path + " is damaged at '" + line.substr(0, 80) + "'; reinstall openmythos");
    };
    Manifest manifest;
    std::string line, vendor;
    std::getline(file, line);
    require(line == "openmythos code objects 1", line);
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string key;
        words >> key;
        if (key == "vendor") {
            require(bool(words >> vendor), line);
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
    manifest.vendor = find_vendor(vendor);
    require(manifest.vendor, "vendor " + vendor);
    return manifest;
}

const CodeObject* Manifest::find(const std::string& op, const std::string& arch) const {
    const CodeObject* best = nullptr;
    int best_match = 0;
    for (const CodeObject& object : objects) {
        if (object.op != op) continue;
        const int match = vendor->match(object.arch, arch);
        if (match > best_match) best = &object, best_match = match;
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
