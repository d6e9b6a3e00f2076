// Rows of numbers on standard input and output. In memory a row's features are `count` apart, since
// the graph takes (1, features, 1, count): the batch comes last.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Rows {
    std::size_t features, count;
    std::vector<float> values;  // of feature f in row r: values[f * count + r]
};

inline Rows read_rows(std::istream& stream, std::size_t features) {
    std::vector<float> cells;
    std::size_t count = 0;
    for (std::string line; std::getline(stream, line); ++count) {
        std::istringstream text(line);
        bool numbers = true;
        for (std::string cell; std::getline(text, cell, ',');) {
            char* end = nullptr;
            cells.push_back(std::strtof(cell.c_str(), &end));
            numbers = numbers && end == cell.c_str() + cell.size() && !cell.empty();
        }
        if (!numbers || cells.size() != (count + 1) * features)
            throw std::invalid_argument("row " + std::to_string(count + 1) + " is '" + line + "', expected " +
                                        std::to_string(features) + " numbers with commas between them");
    }
    Rows rows{features, count, std::vector<float>(cells.size())};
    for (std::size_t r = 0; r < count; ++r)
        for (std::size_t f = 0; f < features; ++f) rows.values[f * count + r] = cells[r * features + f];
    return rows;
}

inline void write_rows(std::ostream& stream, const Rows& rows) {
    stream.precision(std::numeric_limits<float>::max_digits10);
    for (std::size_t r = 0; r < rows.count; ++r)
        for (std::size_t f = 0; f < rows.features; ++f)
            stream << rows.values[f * rows.count + r] << (f + 1 < rows.features ? ',' : '\n');
}
