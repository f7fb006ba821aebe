// What tracing.py does for each operation, below Python: torch's table of operators is given this kernel in the place
// where it would call a dispatch mode. Only operations that another mode or a tensor's class must see, or that do not
// come from aten, still go through Python. native.py compiles this file and says when.

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/flat_hash_map.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;
using Numbers = std::vector<std::int64_t>;

// Numbers of autograd's nodes from here on belong to the ends of the graph, which add up parameters' gradients.
constexpr std::uint64_t END = std::uint64_t{1} << 63;

constexpr std::int64_t UNKNOWN = -1;  // of an origin: nobody measured it; below it stand the names of parameters

// The keys of torch's dispatcher that come behind modes, and those before them.
const c10::DispatchKeySet BEHIND(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Python);
const c10::DispatchKeySet BEFORE =
    c10::DispatchKeySet(c10::DispatchKeySet::FULL) ^ BEHIND.add(c10::DispatchKey::Python);

// What operations.py knows of an operation. Places are those of the schema.
struct Operation {
  std::int64_t name;
  std::vector<std::size_t> made;
  std::vector<std::size_t> besides;
  std::vector<std::size_t> written;
  bool initialises;
  bool silent;
  bool numbers;
};

// Texts by number, each once.
class Texts {
 public:
  std::int64_t number(const std::string& text) {
    const auto [found, fresh] = numbers_.try_emplace(text, static_cast<std::int64_t>(texts_.size()));
    if (fresh) texts_.push_back(text);
    return found->second;
  }
  const std::vector<std::string>& all() const { return texts_; }

 private:
  std::unordered_map<std::string, std::int64_t> numbers_;
  std::vector<std::string> texts_;
};

// Where a tensor's memory begins, which its views share; 0 where it has none.
std::uintptr_t address(const at::Tensor& tensor) {
  return tensor.has_storage() ? reinterpret_cast<std::uintptr_t>(tensor.storage().data()) : 0;
}

// The same memory in a tensor of its own: autograd looks at how many hold a gradient, and copies what others hold too.
at::Tensor sharing(const at::Tensor& tensor) {
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

// Whether it is a number in a tensor's clothes: x + 1 is an addition of two tensors, for which Python sees the number.
bool is_number(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_wrapped_number(); }

template <typename Visit>
void tensors_in(const c10::IValue& value, Visit visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined() && !is_number(value.toTensor())) visit(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) tensors_in(item, visit);
  }
}

// Whether it is a number that is infinite or NaN.
bool is_unbounded(const c10::IValue& value) {
  if (value.isDouble()) return !std::isfinite(value.toDouble());
  const bool number = value.isTensor() && value.toTensor().defined() && is_number(value.toTensor());
  return number && value.toTensor().is_cpu() && value.toTensor().scalar_type() == at::kDouble &&
         !std::isfinite(*value.toTensor().const_data_ptr<double>());
}

// Dtype and shape, the same for many outputs: to keep, and of a tensor.
using Kind = std::pair<c10::ScalarType, Numbers>;
using Seen = std::pair<c10::ScalarType, at::IntArrayRef>;

struct Before {
  using is_transparent = void;
  static Seen seen(const Kind& kind) { return {kind.first, kind.second}; }
  static const Seen& seen(const Seen& kind) { return kind; }
  template <typename A, typename B>
  bool operator()(const A& a, const B& b) const {
    const Seen x = seen(a), y = seen(b);
    if (x.first != y.first) return x.first < y.first;
    return std::lexicographical_compare(x.second.begin(), x.second.end(), y.second.begin(), y.second.end());
  }
};

// Whether a tensor that an operation is given is of a class that has an answer of its own, as in ordinary() of
// passing.py.
bool is_answered(const c10::OperatorHandle& handle, const torch::jit::Stack& stack) {
  bool found = false;
  for (const c10::IValue& value : torch::jit::last(stack, handle.schema().arguments().size())) {
    tensors_in(value, [&](const at::Tensor& tensor) { found |= tensor.key_set().has(c10::DispatchKey::Python); });
  }
  return found;
}

// What one trace has noted. Whoever holds its lock calls nothing that could wait for Python's: to run an operation, to
// destroy a tensor.
class Recorder {
 public:
  // Args:
  //   origins: Names of parameters and buffers by the address of their memory.
  //   owners: Each parameter, and the module that it belongs to.
  //   batch, waiting: As many outputs, and bytes of them, may wait to be measured.
  //   learn: Told an operation's name and overload, gives the fields of Operation.
  //   measure: Told the first step and the outputs that are to be measured, all of one device.
  //   scan: Told the first step, where outputs lie, and their device; used in place of measure, which takes longer, for
  //     outputs of the dtypes `scanned` on such devices as `on`.
  Recorder(const std::unordered_map<std::uintptr_t, std::string>& origins,
           const std::vector<std::pair<at::Tensor, std::string>>& owners, std::size_t batch, std::size_t waiting,
           py::function learn, py::function measure, py::function scan, const std::vector<py::object>& scanned,
           const at::Device& on)
      : batch_(batch),
        waiting_(waiting),
        learn_(std::move(learn)),
        measure_(std::move(measure)),
        scan_(std::move(scan)),
        on_(on.type()) {
    for (const py::object& dtype : scanned) {
      scanned_.push_back(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
    }
    modules_.number("");
    for (const auto& [place, name] : origins) origins_[place] = UNKNOWN - 1 - parameters_.number(name);
    for (const auto& [tensor, module] : owners)
      owners_.try_emplace(tensor.unsafeGetTensorImpl(), modules_.number(module));
  }

  // From now on this module runs; none is entered where it is the whole model.
  void runs(const std::string& module, bool entered) {
    const std::lock_guard<std::mutex> lock(mutex_);
    module_ = modules_.number(module);
    entered_ = entered;
  }

  // Where these tensors come from.
  Numbers sources(const Tensors& tensors) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Numbers found;
    for (const at::Tensor& tensor : tensors) found.push_back(origin(tensor));
    return found;
  }

  // Has a pending output in this tensor's memory measured as it is now: a copy of it.
  void spare(const at::Tensor& tensor) {
    std::int64_t step = UNKNOWN;
    at::Tensor waiting;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = origins_.find(address(tensor));
      if (found == origins_.end() || found->second < first_) return;
      step = found->second;
      waiting = pending_[step - first_];
      origins_.erase(found);
    }
    at::Tensor copy = waiting.clone();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (step >= first_) std::swap(pending_[step - first_], copy);  // and so destroyed without the lock
  }

  // Nothing is known any more of what this tensor's memory holds.
  void forget(const at::Tensor& tensor) {
    const std::lock_guard<std::mutex> lock(mutex_);
    origins_.erase(address(tensor));
  }

  void note(const at::Tensor& output, const std::string& name, bool initialises, const Numbers& sources,
            bool unbounded) {
    std::int64_t number = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      number = names_.number(name);
    }
    note(output, number, initialises, sources, unbounded);
  }

  // One operation of aten: runs it and notes what it wrote.
  void run(const c10::OperatorHandle& handle, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const Operation& known = operation(handle);
    if (known.silent) {
      handle.redispatchBoxed(keys, stack);
      return;
    }
    const std::size_t taken = handle.schema().arguments().size();
    const std::size_t given = handle.schema().returns().size();
    const auto arguments = torch::jit::last(*stack, taken);
    Numbers sources;
    bool unbounded = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const c10::IValue& value : arguments) {
        tensors_in(value, [&](const at::Tensor& tensor) { sources.push_back(origin(tensor)); });
        unbounded |= known.numbers && is_unbounded(value);
      }
    }
    Tensors outputs;
    for (const std::size_t place : known.written) {
      tensors_in(arguments[place], [&](const at::Tensor& tensor) { outputs.push_back(tensor); });
    }
    for (const at::Tensor& target : outputs) spare(target);
    handle.redispatchBoxed(keys, stack);
    const auto results = torch::jit::last(*stack, given);
    for (const std::size_t place : known.made) {
      tensors_in(results[place], [&](const at::Tensor& tensor) { outputs.push_back(tensor); });
    }
    for (const at::Tensor& output : outputs) {
      spare(output);  // of two outputs in one memory, or of what is given back as it was
      note(output, known.name, known.initialises, sources, unbounded);
    }
    for (const std::size_t place : known.besides) {
      tensors_in(results[place], [&](const at::Tensor& tensor) { forget(tensor); });
    }
  }

  // Has the pending outputs measured. Whoever calls this holds no lock.
  void flush() {
    Tensors taken;
    std::int64_t start = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start = first_;
      first_ += static_cast<std::int64_t>(pending_.size());
      taken.swap(pending_);
      bytes_ = 0;
    }
    if (taken.empty()) return;
    const c10::impl::ExcludeDispatchKeyGuard unseen(BEFORE.add(c10::DispatchKey::Python));
    const at::Device device = taken.front().device();
    const at::Tensor where = device.type() == on_ ? described(taken) : at::Tensor();
    const py::gil_scoped_acquire python;
    if (where.defined()) {
      scan_(start, where, device);
    } else {
      measure_(start, taken);
    }
  }

  // What was noted, in columns (see events.py); texts and kinds by their numbers, and what these stand for.
  py::dict columns() {
    const std::lock_guard<std::mutex> lock(mutex_);
    using namespace py::literals;
    py::list kinds;
    for (const Kind* kind : kinds_) {
      const py::handle dtype(reinterpret_cast<PyObject*>(torch::getTHPDtype(kind->first)));
      kinds.append(py::make_tuple(dtype, kind->second));
    }
    return py::dict("spots"_a = array(spots_), "ops"_a = array(ops_), "origins"_a = array(noted_),
                    "ends"_a = array(ends_), "unbounded"_a = unbounded_, "kinds"_a = array(kinds_of_),
                    "names"_a = names_.all(), "modules"_a = modules_.all(), "parameters"_a = parameters_.all(),
                    "kinds_met"_a = kinds);
  }

 private:
  static py::array_t<std::int64_t> array(const Numbers& numbers) {
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
  }

  // Addresses, elements and dtypes, shape (3, outputs), int64; outputs that are not dense become so. Undefined where an
  // output is of another dtype than scanned.
  at::Tensor described(Tensors& outputs) const {
    at::Tensor where = at::empty({3, static_cast<std::int64_t>(outputs.size())}, at::kLong);
    auto at = where.accessor<std::int64_t, 2>();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const auto dtype = std::find(scanned_.begin(), scanned_.end(), outputs[i].scalar_type());
      if (dtype == scanned_.end()) return {};
      if (outputs[i].is_neg()) outputs[i] = outputs[i].resolve_neg();
      if (!outputs[i].is_non_overlapping_and_dense()) outputs[i] = outputs[i].contiguous();
      at[0][i] = reinterpret_cast<std::int64_t>(outputs[i].const_data_ptr());
      at[1][i] = outputs[i].numel();
      at[2][i] = dtype - scanned_.begin();
    }
    return where;
  }

  // A place in modules, doubled, one more in the backward pass, all bits flipped; or the number of autograd's node.
  std::int64_t here() const {
    if (torch::autograd::get_current_graph_task_id() == -1) return ~(2 * module_);
    if (entered_) return ~(2 * module_ + 1);
    const auto node = torch::autograd::get_current_node();
    if (!node) return ~std::int64_t{1};
    const std::uint64_t number = node->sequence_nr();
    if (number < END) return static_cast<std::int64_t>(number);
    const auto* end = dynamic_cast<torch::autograd::AccumulateGrad*>(&*node);
    const auto owner = end == nullptr ? owners_.end() : owners_.find(end->variable.unsafeGetTensorImpl());
    return ~(2 * (owner == owners_.end() ? 0 : owner->second) + 1);
  }

  std::int64_t origin(const at::Tensor& tensor) const {
    const auto found = origins_.find(address(tensor));
    return found == origins_.end() ? UNKNOWN : found->second;
  }

  void note(const at::Tensor& output, std::int64_t name, bool initialises, const Numbers& sources, bool unbounded) {
    const std::uintptr_t memory = address(output);
    const bool measured = initialises && memory != 0 && output.is_floating_point() && output.numel() > 0;
    if (!measured) return forget(output);
    at::Tensor kept = sharing(output);  // which may ask another mode, in Python
    bool full = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      while (!pending_.empty() && pending_.front().device() != output.device()) {  // a batch is of one device
        lock.unlock();
        flush();
        lock.lock();
      }
      const auto step = static_cast<std::int64_t>(ops_.size());
      origins_[memory] = step;
      spots_.push_back(here());
      ops_.push_back(name);
      noted_.insert(noted_.end(), sources.begin(), sources.end());
      ends_.push_back(static_cast<std::int64_t>(noted_.size()));
      if (unbounded) unbounded_.push_back(step);
      kinds_of_.push_back(kind(output));
      pending_.push_back(std::move(kept));
      bytes_ += output.nbytes();
      full = bytes_ >= waiting_ || pending_.size() >= batch_;
    }
    if (full) flush();
  }

  std::int64_t kind(const at::Tensor& output) {
    auto found = kind_numbers_.find(Seen(output.scalar_type(), output.sizes()));
    if (found == kind_numbers_.end()) {
      const auto number = static_cast<std::int64_t>(kinds_.size());
      found = kind_numbers_.emplace(Kind(output.scalar_type(), output.sizes().vec()), number).first;
      kinds_.push_back(&found->first);
    }
    return found->second;
  }

  // Known by where its schema lies, which stays there; hashing its name takes longer.
  const Operation& operation(const c10::OperatorHandle& handle) {
    const void* place = &handle.schema();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = known_.find(place);
      if (found != known_.end()) return found->second;
    }
    const py::gil_scoped_acquire python;
    using Places = std::vector<std::size_t>;
    const auto [name, made, besides, written, initialises, silent, numbers] =
        learn_(handle.operator_name().name, handle.operator_name().overload_name)
            .cast<std::tuple<std::string, Places, Places, Places, bool, bool, bool>>();
    const std::lock_guard<std::mutex> lock(mutex_);
    return known_
        .try_emplace(place, Operation{names_.number(name), made, besides, written, initialises, silent, numbers})
        .first->second;
  }

  std::mutex mutex_;
  const std::size_t batch_, waiting_;
  const py::function learn_, measure_, scan_;
  std::vector<c10::ScalarType> scanned_;
  const c10::DeviceType on_;
  Texts names_, modules_, parameters_;
  std::unordered_map<const void*, Operation> known_;  // references to what it holds stay valid
  std::unordered_map<const c10::TensorImpl*, std::int64_t> owners_;
  ska::flat_hash_map<std::uintptr_t, std::int64_t> origins_;
  std::map<Kind, std::int64_t, Before> kind_numbers_;
  std::vector<const Kind*> kinds_;
  Numbers spots_, ops_, noted_, ends_, unbounded_, kinds_of_;
  Tensors pending_;
  std::int64_t first_ = 0;  // the step of the first pending output
  std::size_t bytes_ = 0;
  std::int64_t module_ = 0;
  bool entered_ = false;
};

// The recorder whose trace is entered, and that trace: one at a time in a process.
Recorder* active = nullptr;
PyObject* trace = nullptr;

void traced(const c10::OperatorHandle& handle, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard done(BEFORE);
  const auto modes = c10::impl::TorchDispatchModeTLS::stack_len();
  if (modes == 1 && c10::impl::TorchDispatchModeTLS::get_stack_at(0)->ptr(getPyInterpreter()) == trace &&
      !is_answered(handle, *stack)) {
    const c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::Python);
    active->run(handle, keys & BEHIND, stack);
  } else {  // what torch's own kernel does in this place
    (*getPyInterpreter())->dispatch(handle, stack);
  }
}

// While it lives, operations of aten under this trace do not reach Python.
class Installed {
 public:
  // Args:
  //   spared: Operations that are left as they are, by name and overload.
  //   met: All others that are not; every one if it is empty.
  Installed(Recorder& recorder, const py::object& mode, const std::unordered_set<std::string>& spared,
            const std::unordered_set<std::string>& met)
      : library_(torch::Library::IMPL, "aten", c10::DispatchKey::Python, __FILE__, __LINE__) {
    active = &recorder;
    trace = mode.ptr();
    for (const std::string& name : met.empty() ? all() : met) {
      if (spared.count(name) == 0) {
        library_.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&traced>());
      }
    }
  }
  static std::unordered_set<std::string> all() {
    std::unordered_set<std::string> names;
    for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
      const bool given = name.overload_name.find("out") != std::string::npos;  // its outputs: models call none such
      if (name.getNamespace() == "aten" && !given) names.insert(c10::toString(name).substr(sizeof("aten::") - 1));
    }
    return names;
  }
  void end() {
    library_.reset();
    active = nullptr;
    trace = nullptr;
  }

 private:
  torch::Library library_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Recorder>(module, "Recorder")
      .def(py::init<const std::unordered_map<std::uintptr_t, std::string>&,
                    const std::vector<std::pair<at::Tensor, std::string>>&, std::size_t, std::size_t, py::function,
                    py::function, py::function, const std::vector<py::object>&, const at::Device&>())
      .def("runs", &Recorder::runs)
      .def("sources", &Recorder::sources)
      .def("spare", &Recorder::spare)
      .def("forget", &Recorder::forget)
      .def("note",
           py::overload_cast<const at::Tensor&, const std::string&, bool, const Numbers&, bool>(&Recorder::note))
      .def("flush", &Recorder::flush, py::call_guard<py::gil_scoped_release>())
      .def("columns", &Recorder::columns);
  py::class_<Installed>(module, "Installed")
      .def(py::init<Recorder&, const py::object&, const std::unordered_set<std::string>&,
                    const std::unordered_set<std::string>&>(),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def("end", &Installed::end);
}
