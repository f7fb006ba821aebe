// What tracing.py does for each operation, below Python: torch tells its observers of every call of an operator (this
// is how its profiler learns of them), with what the call was given and what it gave. native.py compiles this file.

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;
using Numbers = std::vector<std::int64_t>;

// Numbers of autograd's nodes from here on belong to the ends of the graph, which add up parameters' gradients.
constexpr std::uint64_t END = std::uint64_t{1} << 63;

constexpr std::int64_t UNKNOWN = -1;  // of an origin: nobody measured it; below it stand the names of parameters

// The keys of torch's dispatcher by which autograd and dispatch modes see operations, and all that come before them.
const c10::DispatchKeySet UNSEEN = c10::DispatchKeySet(c10::DispatchKeySet::FULL) ^
                                   c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Python);

// Those by which a tensor is not itself but holds others: what is done with these is called in turn.
const c10::DispatchKeySet HOLDING({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
                                   c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Batched});

// Those by which functorch is asked about operations, those without a tensor too; it calls them again when it has said
// its own.
const c10::DispatchKeySet ASKING({c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                  c10::DispatchKey::FuncTorchDynamicLayerBackMode});

// What operations.py knows of an operation. Places are those of the schema.
struct Operation {
  std::int64_t name;
  std::vector<std::size_t> made;
  std::vector<std::size_t> besides;
  std::vector<std::size_t> written;
  std::size_t taken;
  std::size_t returned;
  bool initialises;
  bool shows;  // what there is, and makes nothing
  bool numbers;
  bool composed;
  bool cast;
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
  return tensor.has_storage() && !tensor.key_set().has_any(HOLDING)
             ? reinterpret_cast<std::uintptr_t>(tensor.storage().data())
             : 0;
}

// The same memory in a tensor of its own: autograd looks at how many hold a gradient, and copies what others hold too.
at::Tensor sharing(const at::Tensor& tensor) {
  const c10::impl::ExcludeDispatchKeyGuard unseen(UNSEEN);
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

// An operation's own arguments or results: a stack may hold others before them.
at::ArrayRef<c10::IValue> last(at::ArrayRef<c10::IValue> stack, std::size_t number) {
  return stack.slice(stack.size() - number, number);
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

// What is noted of a call when it begins.
struct Begun : at::ObserverContext {
  explicit Begun(const Operation& operation) : known(operation) {}
  const Operation& known;
  c10::SmallVector<std::int64_t, 4> sources;
  c10::SmallVector<at::Tensor, 1> written;
  bool unbounded = false;
  const int raised = std::uncaught_exceptions();
};

// Whether this thread is within a call that is noted: what that calls in turn is its own affair.
thread_local bool within = false;

// What one trace has noted. Whoever holds its lock calls nothing that could wait for Python's: to run an operation, to
// destroy a tensor.
class Recorder {
 public:
  // Args:
  //   origins: Names of parameters and buffers by the address of their memory.
  //   owners: Each parameter, and the module that it belongs to.
  //   modules: Names of all modules.
  //   running: Which of them runs, now and later, and how many are entered; int64.
  //   batch, waiting: As many outputs, and bytes of them, may wait to be measured.
  //   learn: Told an operation's name and overload, gives the fields of Operation.
  //   measure: Told the first step and the outputs that are to be measured, all of one device.
  //   scan: Told the first step, where outputs lie, and their device; used in place of measure, which takes longer, for
  //     outputs of the dtypes `scanned` on such devices as `on`.
  Recorder(const std::unordered_map<std::uintptr_t, std::string>& origins,
           const std::vector<std::pair<at::Tensor, std::string>>& owners, const std::vector<std::string>& modules,
           const py::buffer& running, std::size_t batch, std::size_t waiting, py::function learn, py::function measure,
           py::function scan, const std::vector<py::object>& scanned, const at::Device& on)
      : running_(running.request()),
        batch_(batch),
        waiting_(waiting),
        learn_(std::move(learn)),
        measure_(std::move(measure)),
        scan_(std::move(scan)),
        on_(on.type()),
        autocast_(at::autocast::get_autocast_dispatch_key_from_device_type(on.type())) {
    for (const py::object& dtype : scanned) {
      scanned_.push_back(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
    }
    for (const std::string& module : modules) modules_.number(module);
    for (const auto& [place, name] : origins) origins_[place] = UNKNOWN - 1 - parameters_.number(name);
    for (const auto& [tensor, module] : owners)
      owners_.try_emplace(tensor.unsafeGetTensorImpl(), modules_.number(module));
  }

  // A call begins; null where it is not noted: it only shows again what there is, or is made of calls that are noted.
  std::unique_ptr<Begun> begun(const at::RecordFunction& call) {
    const Operation* known = operation(call);
    if (known == nullptr || known->shows || known->composed) return nullptr;
    const auto arguments = last(call.inputs(), known->taken);
    auto noted = std::make_unique<Begun>(*known);
    bool passing = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const c10::IValue& value : arguments) {
        tensors_in(value, [&](const at::Tensor& tensor) {
          passing |= passes(*known, tensor);
          noted->sources.push_back(origin(tensor));
        });
        noted->unbounded |= known->numbers && is_unbounded(value);
      }
    }
    if (passing) return nullptr;
    for (const std::size_t place : known->written) {
      tensors_in(arguments[place], [&](const at::Tensor& tensor) { noted->written.push_back(tensor); });
    }
    for (const at::Tensor& target : noted->written) spare(address(target));
    return noted;
  }

  // It ended, or failed.
  void ended(const at::RecordFunction& call, const Begun& noted) {
    const Operation& known = noted.known;  // torch may count exceptions by a runtime of its own: outputs tell as well
    if (std::uncaught_exceptions() > noted.raised || call.outputs().size() < known.returned) return;
    const auto results = last(call.outputs(), known.returned);
    const auto note_each = [&](const at::Tensor& output) { note(output, noted); };
    for (const at::Tensor& output : noted.written) note_each(output);
    for (const std::size_t place : known.made) tensors_in(results[place], note_each);
    for (const std::size_t place : known.besides) {
      tensors_in(results[place], [&](const at::Tensor& tensor) { forget(tensor); });
    }
  }

  // An operator is taken away: another's name may lie there afterwards.
  void left(const char* name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (auto known = known_.extract(name)) left_.push_back(std::move(known));  // it may be running
  }

  // What an observer did not do is told by flush: torch only warns of its errors.
  void failed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }

  // Has the pending outputs measured.
  void flush() {
    measure_pending();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));  // it holds all that its frames do
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
    const auto* const running = static_cast<const std::int64_t*>(running_.ptr);
    if (torch::autograd::get_current_graph_task_id() == -1) return ~(2 * running[0]);
    if (running[1] > 0) return ~(2 * running[0] + 1);
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

  // Whether an operation on this tensor only calls others, which are noted: for each that a tensor holds, or itself
  // once more, on what autocast has cast.
  bool passes(const Operation& known, const at::Tensor& tensor) const {
    return tensor.key_set().has_any(HOLDING) ||
           (known.cast && tensor.key_set().has(autocast_) && !c10::impl::tls_is_dispatch_key_excluded(autocast_));
  }

  // The pending output that lies in this memory, and its step; undefined where none does.
  std::pair<at::Tensor, std::int64_t> pending_in(std::uintptr_t memory) const {
    const auto found = origins_.find(memory);
    if (found == origins_.end() || found->second < first_) return {};
    return {pending_[found->second - first_], found->second};
  }

  // Has what waits in this memory measured as it is now: a copy of it.
  void spare(std::uintptr_t memory) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto [waiting, step] = pending_in(memory);
    if (!waiting.defined()) return;
    origins_.erase(memory);
    lock.unlock();
    {
      const c10::impl::ExcludeDispatchKeyGuard unseen(UNSEEN);
      waiting = waiting.clone();
    }
    lock.lock();
    if (step >= first_) std::swap(pending_[step - first_], waiting);  // and so destroyed without the lock
    lock.unlock();
  }

  // Nothing is known any more of what this tensor's memory holds.
  void forget(const at::Tensor& tensor) {
    const std::lock_guard<std::mutex> lock(mutex_);
    origins_.erase(address(tensor));
  }

  void note(const at::Tensor& output, const Begun& noted) {
    const std::uintptr_t memory = address(output);
    spare(memory);  // of two outputs in one memory, or of what is given back as it was
    const bool defined = noted.known.initialises && memory != 0;
    if (!defined || !output.is_floating_point() || output.numel() == 0) return forget(output);
    at::Tensor kept = sharing(output);
    std::unique_lock<std::mutex> lock(mutex_);
    while (!pending_.empty() && pending_.front().device() != output.device()) {  // a batch is of one device
      lock.unlock();
      measure_pending();
      lock.lock();
    }
    const auto step = static_cast<std::int64_t>(ops_.size());
    origins_[memory] = step;
    spots_.push_back(here());
    ops_.push_back(noted.known.name);
    noted_.insert(noted_.end(), noted.sources.begin(), noted.sources.end());
    ends_.push_back(static_cast<std::int64_t>(noted_.size()));
    if (noted.unbounded) unbounded_.push_back(step);
    kinds_of_.push_back(kind(output));
    pending_.push_back(std::move(kept));
    bytes_ += output.nbytes();
    const bool full = bytes_ >= waiting_ || pending_.size() >= batch_;
    lock.unlock();
    if (full) measure_pending();
  }

  // Whoever calls this holds no lock.
  void measure_pending() {
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
    const c10::impl::ExcludeDispatchKeyGuard unseen(UNSEEN);
    const at::Device device = taken.front().device();
    const at::Tensor where = device.type() == on_ ? described(taken) : at::Tensor();
    const py::gil_scoped_acquire python;
    if (where.defined()) {
      scan_(start, where, device);
    } else {
      measure_(start, taken);
    }
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

  // Known by where the name in its schema lies, which stays there; hashing the name takes longer. Null where what is
  // called is no operator: torch tells of autograd.Functions too.
  const Operation* operation(const at::RecordFunction& call) {
    const void* place = call.name();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = known_.find(place);
      if (found != known_.end()) return &found->second;
    }
    const auto name = call.operator_name();
    if (!name) return nullptr;
    const py::gil_scoped_acquire python;
    using Places = std::vector<std::size_t>;
    const auto [text, made, besides, written, taken, returned, initialises, shows, numbers, composed, cast] =
        learn_(name->name, name->overload_name)
            .cast<std::tuple<std::string, Places, Places, Places, std::size_t, std::size_t, bool, bool, bool, bool,
                             bool>>();
    const std::lock_guard<std::mutex> lock(mutex_);
    return &known_
                .try_emplace(place, Operation{names_.number(text), made, besides, written, taken, returned, initialises,
                                              shows, numbers, composed, cast})
                .first->second;
  }

  std::mutex mutex_;
  const py::buffer_info running_;
  const std::size_t batch_, waiting_;
  const py::function learn_, measure_, scan_;
  std::vector<c10::ScalarType> scanned_;
  const c10::DeviceType on_;
  const c10::DispatchKey autocast_;
  Texts names_, modules_, parameters_;
  std::unordered_map<const void*, Operation> known_;  // references to what it holds stay valid
  std::vector<std::unordered_map<const void*, Operation>::node_type> left_;
  std::unordered_map<const c10::TensorImpl*, std::int64_t> owners_;
  ska::flat_hash_map<std::uintptr_t, std::int64_t> origins_;
  std::map<Kind, std::int64_t, Before> kind_numbers_;
  std::vector<const Kind*> kinds_;
  Numbers spots_, ops_, noted_, ends_, unbounded_, kinds_of_;
  Tensors pending_;
  std::int64_t first_ = 0;  // the step of the first pending output
  std::size_t bytes_ = 0;
  std::exception_ptr failure_;
};

// The recorder whose trace is entered: one at a time in a process.
std::atomic<Recorder*> active = nullptr;

// Has an observer do something, whose own calls are not noted. Not where no trace is entered any more: a call may end
// later, and threads on which TorchScript runs go on observing.
template <typename Do>
void quietly(Do what) {
  Recorder* const recorder = active;
  within = true;
  try {
    if (recorder != nullptr) what(*recorder);
  } catch (...) {
    recorder->failed();
  }
  within = false;
}

// Not what torch hides from modes too: how it fills constants; nor what functorch calls again.
bool visible() {
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  return !local.excluded_.has(c10::DispatchKey::Python) && !(local.included_ - local.excluded_).has_any(ASKING);
}

std::unique_ptr<at::ObserverContext> begun(const at::RecordFunction& call) {
  std::unique_ptr<Begun> noted;
  if (!within && visible()) quietly([&](Recorder& recorder) { noted = recorder.begun(call); });
  within |= noted != nullptr;
  return noted;
}

void ended(const at::RecordFunction& call, at::ObserverContext* noted) {
  if (noted != nullptr) quietly([&](Recorder& recorder) { recorder.ended(call, *static_cast<Begun*>(noted)); });
}

// Tells the recorder of operators that are taken away.
class Leaving : public c10::OpRegistrationListener {
 public:
  explicit Leaving(Recorder& recorder) : recorder_(recorder) {}
  void onOperatorRegistered(const c10::OperatorHandle&) override {}
  void onOperatorDeregistered(const c10::OperatorHandle& operation) override {
    recorder_.left(operation.schema().name().c_str());
  }

 private:
  Recorder& recorder_;
};

// Until it ends, this thread's operations are noted, and those of autograd's threads that run for it. It switches
// observers on where somebody has switched them off.
class Observing {
 public:
  explicit Observing(Recorder& recorder)
      : on_(std::in_place),
        leaving_(c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Leaving>(recorder))) {
    active = &recorder;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(begun, ended)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
  }
  void end() {
    at::removeCallback(handle_);
    active = nullptr;
    leaving_.reset();
    on_.reset();
  }

 private:
  std::optional<at::RecordFunctionGuard> on_;
  std::optional<c10::RegistrationHandleRAII> leaving_;
  at::CallbackHandle handle_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Recorder>(module, "Recorder")
      .def(py::init<const std::unordered_map<std::uintptr_t, std::string>&,
                    const std::vector<std::pair<at::Tensor, std::string>>&, const std::vector<std::string>&,
                    const py::buffer&, std::size_t, std::size_t, py::function, py::function, py::function,
                    const std::vector<py::object>&, const at::Device&>())
      .def("flush", &Recorder::flush, py::call_guard<py::gil_scoped_release>())
      .def("columns", &Recorder::columns);
  py::class_<Observing>(module, "Observing")
      .def(py::init<Recorder&>(), py::keep_alive<1, 2>())
      .def("end", &Observing::end);
}
