import sys, time, itertools, statistics
import torch, triton
from gemma_doctor.kernels import outputs_fused as OF, triton_outputs as TO
from gemma_doctor.kernels.guards import norms_fused as NF, norms_torch, triton_norms as TN
from gemma_doctor.kernels.guards.norms_torch import Form, Operands
import gemma_doctor.kernels as K
G=torch.device('cuda'); T0=time.time()
torch.backends.cuda.matmul.allow_tf32=False; torch.backends.cudnn.allow_tf32=False
filler=torch.empty(1<<28,device=G,dtype=torch.int32)
def t(fn,n=7,warm=2):
    ts=[]
    for i in range(n+warm):
        a,b=torch.cuda.Event(enable_timing=True),torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(); filler.zero_(); filler.zero_()
        a.record(); fn(); b.record(); torch.cuda.synchronize()
        if i>=warm: ts.append(a.elapsed_time(b)*1e3)
    return statistics.median(ts)
def host(fn,n=200):
    fn(); torch.cuda.synchronize(); t0=time.perf_counter()
    for _ in range(n): fn()
    r=(time.perf_counter()-t0)/n*1e6; torch.cuda.synchronize(); return r
part=sys.argv[1].split(',')
print(torch.cuda.get_device_name(),torch.__version__,triton.__version__,flush=True)
if 'stats' in part:
    from gpu_kernels import statistics_agree
    statistics_agree()
    for d in (torch.float16,torch.bfloat16,torch.float32):
        for mb in (128,2048):
            x=torch.randn((mb<<20)//d.itemsize,device=G,dtype=d); y=torch.empty_like(x)
            c=t(lambda:y.copy_(x)); print(d,mb,'copy us',round(c),'GB/s',round(2*(mb<<20)/c/1e3),flush=True)
            for W,L,piece,prog in [(4,4,128,1056),(4,4,128,2112),(4,8,128,1056),(4,2,128,1056),(8,4,128,528),(8,2,128,1056),(8,4,128,1056),(2,8,128,2112)]:
                OF._WARPS,OF._LOADS,OF._PROGRAMS=W,L,prog; OF._TILE=32*W*16; OF._PIECE=piece*OF._TILE
                u=t(lambda:OF.enqueue([x]),5); print('   W%d L%d piece%d prog%d: %d us %d GB/s ratio %.3f'%(W,L,piece,prog,u,(mb<<20)/u/1e3,(mb<<20)/u*c/(2*(mb<<20))),flush=True)
            del x,y
    OF._WARPS,OF._LOADS,OF._PROGRAMS=4,4,1056; OF._TILE=2048; OF._PIECE=128*2048
    from gemma_doctor.kernels.outputs import launch
    small=[torch.randn(2048,device=G,dtype=torch.bfloat16) for _ in range(4096)]
    print('small 4096: device us',t(lambda:launch(small)),'host us',host(lambda:launch(small),10),'256: host',host(lambda:launch(small[:256]),30),'foreach host',host(lambda:torch._foreach_norm(small,float('inf')),10),flush=True)
    import cProfile,pstats
    pr=cProfile.Profile(); pr.enable(); [launch(small) for _ in range(5)]; pr.disable(); pstats.Stats(pr).sort_stats('tottime').print_stats(12)
if 'norms' in part:
    from gpu_kernels import norms_agree
    norms_agree()
    for cl,maps in ((True,[(64,384),(512,192),(640,48),(1280,24),(2560,48),(2560,24),(3840,48)]),(False,[(64,384),(512,192),(640,48),(1280,24),(2560,48),(2560,24)])):
        for C,S in maps:
            nb=max(2,min(6,(150<<20)//(4*C*S*S*2)))
            fmt=torch.channels_last if cl else torch.contiguous_format
            xs=[torch.randn(4,C,S,S,device=G,dtype=torch.float16).to(memory_format=fmt) for _ in range(nb)]; ys=[torch.empty_like(x) for x in xs]; gs=[torch.randn_like(x) for x in xs]
            w=torch.randn(C,device=G,dtype=torch.float16); form=Form(1e-6,1,torch.float16,gelu=True); form0=Form(1e-6,1,torch.float16)
            c=t(lambda:[y.copy_(x) for x,y in zip(xs,ys)])/nb
            c3=t(lambda:[torch.add(x,g,out=y) for x,g,y in zip(xs,gs,ys)])/nb
            print('CL' if cl else 'NCHW',C,S,'copy %.1f add(3 units) %.1f'%(c,c3),flush=True)
            combos=[(2048,16),(4096,16),(4096,32),(8192,32),(2048,8),(2048,32)] if cl else [(2048,4),(4096,8),(8192,8),(8192,16),(2048,8),(4096,4)]
            for a,b in combos:
                if cl: NF._ROW_ELEMENTS,NF._EACH=a,b
                else: NF._MAP_ELEMENTS,NF._MAP_WARPS=a,b
                for width in ((0,) if cl else ((64,),(32,),(16,),(128,))):
                    if not cl: NF._WIDTHS=width
                    try:
                        f=t(lambda:[NF.forward(Operands(x,w,None),form) for x in xs],5)/nb
                        f0=t(lambda:[NF.forward(Operands(x,w,None),form0) for x in xs],5)/nb if a==4096 else 0
                        inv=NF.forward(Operands(xs[0],w,None),form)[1]
                        r=t(lambda:[NF.backward(g,Operands(x,w,None),inv,form,frozen=False) for x,g in zip(xs,gs)],5)/nb
                        print('   E%d W/each%d width%s: fwd %.1f (%.2f of copy) nogelu %.1f bwd %.1f (%.2f of add)'%(a,b,width,f,c/f,f0,r,c3/r),flush=True)
                    except Exception as e: print('   fail',a,b,width,repr(e)[:100],flush=True)
            del xs,ys,gs
    x=torch.randn(4,640,24,24,device=G,dtype=torch.float16).to(memory_format=torch.channels_last); w=torch.randn(640,device=G,dtype=torch.float16)
    from gemma_doctor.kernels.guards.norms import rms_norm
    import cProfile,pstats
    with torch.no_grad(): print('host us rms_norm',host(lambda:rms_norm(x,w,form)),'empty_like',host(lambda:torch.empty_like(x)),'add',host(lambda:x+x),flush=True)
    wp=torch.nn.Parameter(w); print('host us rms_norm with grad',host(lambda:rms_norm(x,wp,form)),flush=True)
    pr=cProfile.Profile(); pr.enable()
    with torch.no_grad(): [rms_norm(x,w,form) for _ in range(300)]
    pr.disable(); pstats.Stats(pr).sort_stats('tottime').print_stats(14)
if 'enc' in part:
    import timm, copy
    from torch.profiler import profile, ProfilerActivity
    half=timm.create_model('mobilenetv5_300m_enc',pretrained=False).to(G,torch.float16).eval()
    x=torch.randn(4,3,768,768,device=G,dtype=torch.float16)
    g=copy.deepcopy(half); K.guard(g)
    ms={'plain':(half,x),'plain CL':(copy.deepcopy(half).to(memory_format=torch.channels_last),x.to(memory_format=torch.channels_last)),'guarded':(g,x),'guarded CL':(g,x.to(memory_format=torch.channels_last))}
    def run(m,x,bw):
        with torch.set_grad_enabled(bw):
            r=m(x)
            if bw: r.float().mean().backward(); m.zero_grad()
    for bw in (False,True):
        for n,(m,xx) in ms.items():
            try:
                run(m,xx,bw); torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); b0=torch.cuda.memory_allocated()
                d=t(lambda:run(m,xx,bw),5,1); h=host(lambda:run(m,xx,bw),3); pk=torch.cuda.max_memory_allocated()-b0
                print(n,'bw' if bw else 'fw','event us %.0f host us %.0f peak MiB %.0f'%(d,h,pk/2**20),flush=True)
                with profile(activities=[ProfilerActivity.CUDA]) as p: run(m,xx,bw); torch.cuda.synchronize()
                ev=[e for e in p.key_averages() if e.device_time_total>0]
                print('   GPU busy us %.0f'%sum(e.self_device_time_total for e in ev))
                for e in sorted(ev,key=lambda e:-e.self_device_time_total)[:13]: print('     %8.0f %5d %s'%(e.self_device_time_total,e.count,e.key[:110]))
            except Exception as e: print(n,bw,'FAIL',repr(e)[:300])
print('seconds',time.time()-T0)
