// Answers rows from standard input with a bundle's model.engine: ./relukan-tensorrt model.engine < rows.csv
// TensorRT and TensorRT-RTX have the same API; which of them this is, the linked library decides.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../rows.hpp"

namespace {

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << text << '\n';
    }
};

void check(bool done, const std::string& what) {
    if (!done) throw std::runtime_error(what);
}

void check(cudaError_t status) { check(status == cudaSuccess, cudaGetErrorString(status)); }

using DeviceBuffer = std::unique_ptr<void, decltype(&cudaFree)>;

DeviceBuffer allocate(std::size_t bytes) {
    void* data = nullptr;
    check(cudaMalloc(&data, bytes));
    return DeviceBuffer(data, &cudaFree);
}

Rows answer(nvinfer1::ICudaEngine& engine, nvinfer1::Dims shape, const Rows& x) {
    const auto least = engine.getProfileShape("x", 0, nvinfer1::OptProfileSelector::kMIN).d[3];
    const auto most = engine.getProfileShape("x", 0, nvinfer1::OptProfileSelector::kMAX).d[3];
    shape.d[3] = static_cast<std::decay_t<decltype(most)>>(x.count);
    check(shape.d[3] >= least && shape.d[3] <= most, "got " + std::to_string(x.count) + " rows, the engine takes " +
                                                         std::to_string(least) + " to " + std::to_string(most));
    const auto outputs = static_cast<std::size_t>(engine.getTensorShape("y").d[1]);
    Rows y{outputs, x.count, std::vector<float>(outputs * x.count)};
    const std::size_t x_bytes = x.values.size() * sizeof(float), y_bytes = y.values.size() * sizeof(float);

    const DeviceBuffer input = allocate(x_bytes), output = allocate(y_bytes);
    const std::unique_ptr<nvinfer1::IExecutionContext> context(engine.createExecutionContext());
    check(context && context->setInputShape("x", shape) && context->setTensorAddress("x", input.get()) &&
              context->setTensorAddress("y", output.get()), "the engine cannot be prepared");
    cudaStream_t stream = nullptr;  // TensorRT warns of the default stream, which waits for every other
    check(cudaStreamCreate(&stream));
    check(cudaMemcpyAsync(input.get(), x.values.data(), x_bytes, cudaMemcpyHostToDevice, stream));
    check(context->enqueueV3(stream), "the engine cannot be run");
    check(cudaMemcpyAsync(y.values.data(), output.get(), y_bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    check(cudaStreamDestroy(stream));
    return y;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        check(argc == 2, "expected the path of a model.engine, and rows on standard input");
        std::ifstream file(argv[1], std::ios::binary);
        check(file.good(), std::string(argv[1]) + " cannot be read");
        const std::vector<char> plan(std::istreambuf_iterator<char>(file), {});
        Logger logger;
        const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
        check(runtime != nullptr, "TensorRT found no GPU, or no driver that it can use");
        const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
        check(engine != nullptr, std::string(argv[1]) + " was not built for this TensorRT and this GPU");
        const auto shape = engine->getTensorShape("x");
        check(shape.nbDims == 4 && shape.d[3] == -1 && engine->getTensorDataType("x") == nvinfer1::DataType::kFLOAT,
              "the engine is not in float32 with the batch last: export it with --precision fp32 --layout batch-last");
        const Rows x = read_rows(std::cin, static_cast<std::size_t>(shape.d[1]));
        if (x.count > 0) write_rows(std::cout, answer(*engine, shape, x));
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
