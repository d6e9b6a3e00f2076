// Answers rows from standard input with a bundle's model.onnx: ./relukan-onnxruntime model.onnx < rows.csv
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "../rows.hpp"

namespace {

std::int64_t features_of(const Ort::TypeInfo& type) {
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    const auto shape = tensor.GetShape();
    if (shape.size() != 4 || shape[3] != -1)
        throw std::invalid_argument("the graph has its batch first: export it with --layout batch-last");
    if (tensor.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
        throw std::invalid_argument("the graph is not in float32: export it with --precision fp32");
    return shape[1];
}

Rows answer(Ort::Session& session, Rows& x) {
    const auto inputs = static_cast<std::int64_t>(x.features), count = static_cast<std::int64_t>(x.count);
    const auto outputs = features_of(session.GetOutputTypeInfo(0));
    Rows y{static_cast<std::size_t>(outputs), x.count, std::vector<float>(x.count * outputs)};
    const std::array<std::int64_t, 4> x_shape{1, inputs, 1, count}, y_shape{1, outputs, 1, count};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // Both tensors are views of the vectors: nothing is copied, and ONNX Runtime writes into y.
    const auto x_tensor = Ort::Value::CreateTensor<float>(memory, x.values.data(), x.values.size(), x_shape.data(), 4);
    auto y_tensor = Ort::Value::CreateTensor<float>(memory, y.values.data(), y.values.size(), y_shape.data(), 4);
    const char *x_name = "x", *y_name = "y";
    session.Run(Ort::RunOptions{}, &x_name, &x_tensor, 1, &y_name, &y_tensor, 1);
    return y;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc != 2) throw std::invalid_argument("expected the path of a model.onnx, and rows on standard input");
        Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "relukan");
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(1);
        Ort::Session session(env, argv[1], options);
        Rows x = read_rows(std::cin, static_cast<std::size_t>(features_of(session.GetInputTypeInfo(0))));
        if (x.count > 0) write_rows(std::cout, answer(session, x));
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
